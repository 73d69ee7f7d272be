/* The guest's channel code on the host, fed with what a runner would never send: for libFuzzer, or with files as arguments.

   Programs are not started: their ends of the pipes are kept here, and what they write, read and how they end is the input's
   too. An input is steps: a byte that says what happens, and for bytes of the channel their number. Whatever comes, the init
   goes on, keeps to its credit and to the frames of docs/layout-1.md, and leaks nothing. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static ssize_t fuzz_read(int fd, void *data, size_t length);
static ssize_t fuzz_write(int fd, const void *data, size_t length);
static int fuzz_kill(pid_t pid, int number);
static pid_t fuzz_waitpid(pid_t pid, int *status, int options);
#define read fuzz_read
#define write fuzz_write
#define kill fuzz_kill
#define waitpid fuzz_waitpid
#include "frames.c"
#include "sessions.c"
#include "serve.c"
#undef read
#undef write
#undef kill
#undef waitpid

enum { CHANNEL = 100000, PIPES = 3 * SESSIONS + 3 };

static struct channel the_channel = {.fd = CHANNEL};
static struct channel *const channel = &the_channel;
static const struct log the_log = {.debug = 1, .channel = &the_channel};

static const uint8_t *coming; /* of the channel */
static size_t coming_length;
static struct { uint8_t known; long credit; } host[1 << 16];
static int ends[PIPES][2], ends_count; /* the programs' */
static pid_t last_pid, dead[SESSIONS];
static int dead_count;

#define CHECK(condition) do { if (!(condition)) { fprintf(stderr, "%d: %s\n", __LINE__, #condition); abort(); } } while (0)

double now(void) { return 1e6; }
void hold_disk(int held, const struct log *log) { (void)held, (void)log; }
void stand_still(struct channel *stopped, const struct program *base) { (void)stopped, (void)base; }
void poll_streams(struct pollfd polls[STREAM_POLLS]) { (void)polls; }
void carry_streams(const struct pollfd polls[STREAM_POLLS]) { (void)polls; }

static ssize_t fuzz_read(int fd, void *data, size_t length) {
    if (fd != CHANNEL)
        return read(fd, data, length);
    if (!coming_length) {
        errno = EAGAIN;
        return -1;
    }
    if (length > coming_length)
        length = coming_length;
    memcpy(data, coming, length);
    coming += length;
    coming_length -= length;
    return length;
}

/* The runner's side: every write is one frame, of a session that it knows. */
static ssize_t fuzz_write(int fd, const void *data, size_t length) {
    uint32_t size;
    uint16_t id;
    if (fd != CHANNEL)
        return write(fd, data, length);
    const uint8_t *bytes = data;
    CHECK(length >= 8);
    memcpy(&size, bytes, 4);
    memcpy(&id, bytes + 6, 2);
    CHECK(length == 8 + (size_t)size && size <= 64 << 10 && !bytes[5]);
    switch (bytes[4]) {
    case STDOUT: case STDERR:
        CHECK(host[id].known && size);
        host[id].credit -= size;
        CHECK(host[id].credit >= 0);
        break;
    case EXIT: CHECK(size == 4 && host[id].known); host[id].known = 0; break;
    case ERROR: CHECK(id && size); host[id].known = 0; break;
    case CREDIT: CHECK(size == 4 && host[id].known); break;
    case READY: CHECK(id && !size && host[id].known); break; /* it runs on by itself */
    case LOG: break;
    default: CHECK(!"a frame that a guest sends");
    }
    return length;
}

static int fuzz_kill(pid_t pid, int number) {
    CHECK(pid > 1000 || pid < -1000); /* never everybody, or the init itself */
    CHECK(number > 0 && number <= 64);
    return 0;
}

static pid_t fuzz_waitpid(pid_t pid, int *status, int options) {
    (void)pid, (void)options;
    if (!dead_count)
        return -1;
    *status = 7 << 8;
    return dead[--dead_count];
}

pid_t fuzz_fork(void) { return ++last_pid; }

int fuzz_pipe2(int fds[2], int flags) {
    if (ends_count == PIPES || pipe2(fds, flags))
        return -1;
    for (int i = 0; i < 2; i++) {
        ends[ends_count][i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        fcntl(ends[ends_count][i], F_SETFL, O_NONBLOCK);
    }
    ends_count++;
    return 0;
}

/* The host's side of what is sent to the guest: which sessions it has opened, and what it has granted. */
static void remember(const uint8_t *data, size_t length) {
    static uint8_t whole[8];
    static size_t have, rest;
    static uint32_t granted;
    if (!data) {
        have = rest = 0;
        return;
    }
    for (; length; data++, length--) {
        if (rest) {
            if (whole[4] == CREDIT && have < 12)
                granted |= (uint32_t)*data << (8 * (have++ - 8));
            if (!--rest) {
                uint16_t id;
                memcpy(&id, whole + 6, 2);
                if (whole[4] == CREDIT && have == 12)
                    host[id].credit += granted;
                have = 0;
            }
            continue;
        }
        whole[have++] = *data;
        if (have == 8) {
            uint32_t size;
            uint16_t id;
            memcpy(&size, whole, 4);
            memcpy(&id, whole + 6, 2);
            if (whole[4] == EXEC && size <= FRAME_MAX && !host[id].known && !find_session(channel, id))
                host[id].known = 1, host[id].credit = WINDOW;
            granted = 0;
            rest = size;
            if (size > FRAME_MAX)
                whole[4] = 0;
            if (!rest)
                have = 0;
        }
    }
}

static void turn(const struct program *base) {
    for (int i = 0; i < SESSIONS; i++)
        for (int which = 0; channel->sessions[i].used && which < 3; which++) {
            struct session *session = &channel->sessions[i];
            if (session->fds[which] < 0 || (which ? !session->credit : !session->waiting))
                continue;
            which ? (void)carry(channel, session, which) : feed(channel, session);
        }
    reap(channel);
    while (coming_length && !read_frames(channel))
        handle_all(channel, base);
    finish(channel);
}

static void reset(void) {
    for (int i = 0; i < SESSIONS; i++)
        if (channel->sessions[i].used) {
            for (int which = 0; which < 3; which++)
                drop(&channel->sessions[i], which);
            free(channel->sessions[i].input);
        }
    memset(channel, 0, sizeof *channel);
    channel->fd = CHANNEL;
    channel->log = &the_log;
    memset(host, 0, sizeof host);
    for (int i = 0; i < ends_count; i++)
        close(ends[i][0]), close(ends[i][1]);
    ends_count = dead_count = 0;
    last_pid = 1000;
    remember(NULL, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    static char *argv[] = {"main", NULL}, *env[] = {"PATH=/bin", "A=1", NULL};
    static char bytes[64 << 10];
    struct program base = {
        .argv = {argv, 1, 2}, .env = {env, 2, 3}, .user = "", .workdir = "/", .term = "xterm", .input = 1, .stop_signal = SIGTERM};
    struct why why;
    reset();
    signal(SIGPIPE, SIG_IGN);
    host[0].known = 1, host[0].credit = WINDOW;
    CHECK(!start_session(channel, 0, &base, &why));
    while (length) {
        uint8_t step = *data++;
        length--;
        switch (step & 7) {
        case 0: case 1: case 2: case 3: { /* so many bytes of the channel: frames, often */
            size_t count = step >> 2;
            if (step & 1)
                count *= 64;
            if (count > length)
                count = length;
            coming = data;
            coming_length = count;
            remember(data, count);
            data += count;
            length -= count;
            break;
        }
        case 4: /* a program ends */
            if (length && dead_count < SESSIONS)
                dead[dead_count++] = 1001 + *data++ % (last_pid - 1000), length--;
            break;
        case 5: /* a program writes */
            if (ends_count) {
                int pipe = (step >> 3) % ends_count;
                if (write(ends[pipe][1], bytes, sizeof bytes) < 0)
                    break;
            }
            break;
        case 6: /* a program reads */
            if (ends_count) {
                int pipe = (step >> 3) % ends_count;
                if (read(ends[pipe][0], bytes, sizeof bytes) < 0)
                    break;
            }
            break;
        case 7: { /* a frame whose length is right, of a kind and session that are likely */
            if (length < 3)
                break;
            static uint8_t out[8 + (255 << 10)];
            uint32_t size = data[1] & 0x80 ? (data[1] & 0x7f) * 2048 : data[1];
            uint16_t id = data[2] & 3;
            size_t given;
            out[4] = 16 + data[0] % 11, out[5] = 0;
            memcpy(out, &size, 4);
            memcpy(out + 6, &id, 2);
            data += 3, length -= 3;
            given = size < length ? size : length;
            memset(out + 8, 'x', size);
            memcpy(out + 8, data, given);
            data += given, length -= given;
            coming = out;
            coming_length = 8 + size;
            remember(out, coming_length);
            break;
        }
        }
        turn(&base);
    }
    reset();
    return 0;
}

#include "main.h"
