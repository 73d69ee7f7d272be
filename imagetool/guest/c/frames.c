/* Frames: le32 length, u8 type, u8 zero, le16 session, payload. */
#include "channel.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The descriptor for the byte `at`, and how many may go through it, at most *length. */
static int lane_of(const struct channel *channel, uint64_t at, size_t *length) {
    const struct lanes *lanes = &channel->lanes;
    if (!lanes->count)
        return channel->fd;
    if (*length > STRIPE - at % STRIPE)
        *length = STRIPE - at % STRIPE;
    return lanes->fds[at / STRIPE % lanes->count];
}

int next_to_read(const struct channel *channel) {
    size_t any = 1;
    return channel->fd < 0 ? -1 : lane_of(channel, channel->lanes.received, &any);
}

static void write_all(struct channel *channel, const void *data, size_t length) {
    for (const char *at = data; length;) {
        size_t part = length;
        int fd = lane_of(channel, channel->lanes.sent, &part);
        ssize_t count = write(fd, at, part);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN) {
            poll(&(struct pollfd){fd, POLLOUT, 0}, 1, 100);
            continue;
        }
        if (count <= 0) {
            channel->fd = -1; /* the runner has gone: its sandbox ends */
            return;
        }
        at += count;
        length -= count;
        channel->lanes.sent += count;
    }
}

void send_frame(struct channel *channel, int type, int session, const void *data, size_t length) {
    static char out[(64 << 10) + HEADER];
    uint32_t size = length;
    uint16_t id = session;
    if (channel->fd < 0 || length > sizeof out - HEADER)
        return;
    memcpy(out, &size, 4);
    out[4] = type;
    out[5] = 0;
    memcpy(out + 6, &id, 2);
    memcpy(out + HEADER, data, length);
    write_all(channel, out, length + HEADER);
}

void send_number(struct channel *channel, int type, int session, uint32_t number) {
    send_frame(channel, type, session, &number, sizeof number);
}

int read_frames(struct channel *channel) {
    size_t most = sizeof channel->incoming - channel->received;
    int fd = lane_of(channel, channel->lanes.received, &most);
    ssize_t count = read(fd, channel->incoming + channel->received, most);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (count <= 0) {
        channel->fd = -1;
        return -1;
    }
    size_t passed = channel->skipped < (size_t)count ? channel->skipped : (size_t)count;
    channel->skipped -= passed;
    if (passed) /* musl's memmove to the same place copies byte by byte */
        memmove(channel->incoming + channel->received, channel->incoming + channel->received + passed, count - passed);
    channel->received += count - passed;
    channel->lanes.received += count;
    return 0;
}

/* The next whole frame from *at on, which is moved behind it. Frames that are too long are skipped. */
int next_frame(struct channel *channel, size_t *at, struct frame *frame) {
    uint32_t length;
    uint16_t id;
    size_t left = channel->received - *at;
    char *head = channel->incoming + *at;
    if (left < HEADER)
        return 0;
    memcpy(&length, head, 4);
    memcpy(&id, head + 6, 2);
    if (length > FRAME_MAX) {
        note(channel->log, "a frame of %u bytes", length);
        channel->skipped = HEADER + (size_t)length - left; /* fewer than it has: as many as fit */
        *at = channel->received;
        return 0;
    }
    if (left < HEADER + length)
        return 0;
    *frame = (struct frame){(uint8_t)head[4], id, head + HEADER, length};
    *at += HEADER + length;
    return 1;
}

/* Forgets the first `length` bytes, which have been handled. */
void drop_frames(struct channel *channel, size_t length) {
    if (length)
        memmove(channel->incoming, channel->incoming + length, channel->received -= length);
}

/* The next frame of this type; others are skipped. -1 and why if the runner has gone. */
int wait_for(struct channel *channel, int type, struct records *payload, struct why *why) {
    for (;;) {
        struct frame frame;
        size_t at = 0;
        int is_found = 0;
        while (!is_found && next_frame(channel, &at, &frame))
            is_found = frame.type == type;
        if (is_found && (payload->data = malloc(frame.length + 1))) {
            payload->length = frame.length;
            memcpy(payload->data, frame.data, frame.length);
            payload->data[frame.length] = 0;
        }
        drop_frames(channel, at);
        if (is_found)
            return payload->data ? 0 : explain(why, "no memory");
        poll(&(struct pollfd){next_to_read(channel), POLLIN, 0}, 1, -1);
        if (read_frames(channel))
            return explain(why, "the runner has gone");
    }
}
