/* Streams: TCP connections between programs of the guest and the runner, with credit both ways; and datagrams. The runner decides
   what is connected with what: nothing is parsed here but the channel's frames. docs/layout-1.md, "Streams". */
#include "channel.h"
#include "records.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STREAMS = ACCEPTED_MOST + CONNECTED_MOST, LISTENERS = 512, EVENTS = 64, AT_ONCE = 16 };
enum { PIECE = 32 << 10, GRANT = 64 << 10, DATAGRAM_MOST = 4096, DATAGRAM_SOCKET = STREAMS, FIRST_LISTENER };

struct stream {
    int used, fd, watched;
    int is_connecting;         /* to a program */
    int input_ended;           /* the runner sends nothing more */
    int output_ended;          /* the program sends nothing more */
    int has_waited;            /* something has waited for the program */
    int is_told, is_closed;    /* CLOSED has been sent; CLOSE has come */
    uint32_t credit, owed;     /* bytes that the runner still takes; bytes for which it is to get credit */
    size_t start, length;      /* of what waits for the program, in its part of `waiting` */
};

static struct {
    struct channel channel;    /* of its own: the lanes */
    int epoll;                 /* all sockets */
    struct stream streams[STREAMS];
    char *waiting;             /* WINDOW bytes for each stream: pages that nobody has written to take no memory */
    int listeners[LISTENERS], listener_count, datagrams;
} all; /* zeros: without lanes nothing of it is used */

struct __attribute__((packed)) endpoint { uint32_t address; uint16_t port; }; /* in frames: as in IPv4, le16 */

static int number_of(const struct stream *stream) {
    int at = stream - all.streams;
    return at < ACCEPTED_MOST ? ACCEPTED_FIRST + at : CONNECTED_FIRST + at - ACCEPTED_MOST;
}

static struct stream *stream_of(int number) {
    if (number >= ACCEPTED_FIRST && number < ACCEPTED_FIRST + ACCEPTED_MOST)
        return &all.streams[number - ACCEPTED_FIRST];
    if (number >= CONNECTED_FIRST && number < CONNECTED_FIRST + CONNECTED_MOST)
        return &all.streams[ACCEPTED_MOST + number - CONNECTED_FIRST];
    return NULL;
}

/* What to wait for. A descriptor of which nothing is wanted is taken out: its hang-up would be reported without end. */
static void watch(struct stream *stream) {
    uint32_t events = 0;
    if (stream->fd >= 0 && !stream->is_connecting && stream->credit && !stream->output_ended)
        events |= EPOLLIN;
    if (stream->fd >= 0 && (stream->is_connecting || stream->length))
        events |= EPOLLOUT;
    struct epoll_event event = {.events = events, .data.u32 = stream - all.streams};
    if (events && epoll_ctl(all.epoll, stream->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, stream->fd, &event))
        note(all.channel.log, "epoll: %s", strerror(errno));
    if (!events && stream->watched)
        epoll_ctl(all.epoll, EPOLL_CTL_DEL, stream->fd, &event);
    stream->watched = events != 0;
}

static char *waiting_of(const struct stream *stream) { return all.waiting + (size_t)WINDOW * (stream - all.streams); }

/* Closes a stream's socket, gives its memory back and says so. Its number is free when the runner has said the same. */
static void end(struct stream *stream) {
    if (stream->fd >= 0)
        close(stream->fd); /* and so out of the set */
    if (stream->has_waited)
        madvise(waiting_of(stream), WINDOW, MADV_DONTNEED);
    stream->fd = -1;
    stream->length = stream->watched = 0;
    if (!stream->is_told)
        send_frame(&all.channel, CLOSED, number_of(stream), "", 0);
    stream->is_told = 1;
    if (stream->is_closed)
        stream->used = 0;
}

static struct stream *begin(struct stream *stream, int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    *stream = (struct stream){.used = 1, .fd = fd, .credit = WINDOW};
    return stream;
}

static void accept_some(int listener) {
    for (int count = 0; count < AT_ONCE; count++) {
        struct sockaddr_in own;
        socklen_t size = sizeof own;
        int at = 0, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        while (at < ACCEPTED_MOST && all.streams[at].used)
            at++;
        if (at == ACCEPTED_MOST || getsockname(fd, (struct sockaddr *)&own, &size)) {
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger)); /* refused, not left to wait */
            close(fd);
            continue;
        }
        struct stream *stream = begin(&all.streams[at], fd);
        struct endpoint endpoint = {own.sin_addr.s_addr, ntohs(own.sin_port)};
        send_frame(&all.channel, ACCEPTED, number_of(stream), &endpoint, sizeof endpoint);
        watch(stream);
    }
}

static void connect_stream(struct stream *stream, const struct frame *frame) {
    struct endpoint endpoint;
    if (stream->used || frame->length != sizeof endpoint || frame->session < CONNECTED_FIRST)
        return;
    memcpy(&endpoint, frame->data, sizeof endpoint);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(endpoint.port), .sin_addr.s_addr = endpoint.address};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    begin(stream, fd);
    if (fd < 0 || (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)) {
        end(stream);
        return;
    }
    stream->is_connecting = 1;
    watch(stream);
}

/* Writes to the program without waiting. How many bytes it took; -1 if the stream has ended by it. */
static ssize_t write_some(struct stream *stream, const char *data, size_t length) {
    ssize_t count = stream->is_connecting || !length ? 0 : send(stream->fd, data, length, MSG_NOSIGNAL);
    if (count < 0 && errno != EAGAIN && errno != EINTR) {
        end(stream);
        return -1;
    }
    count = count < 0 ? 0 : count;
    stream->owed += count;
    if (stream->owed >= GRANT) { /* not each time: until then the runner has most of its window */
        send_number(&all.channel, CREDIT, number_of(stream), stream->owed);
        stream->owed = 0;
    }
    return count;
}

/* Writes what waits for the program, and ends its input if that was all. */
static void flush(struct stream *stream) {
    ssize_t count = write_some(stream, waiting_of(stream) + stream->start, stream->length);
    if (count < 0)
        return;
    stream->start += count;
    stream->length -= count;
    if (!stream->length && !stream->is_connecting && stream->is_closed)
        end(stream);
    else if (!stream->length && !stream->is_connecting && stream->input_ended)
        shutdown(stream->fd, SHUT_WR);
    watch(stream);
}

/* Keeps for later what the program does not take now. */
static int keep(struct stream *stream, const char *data, uint32_t length) {
    char *waiting = waiting_of(stream);
    if (length > WINDOW - stream->length)
        return -1; /* more than was granted */
    if (!stream->length)
        stream->start = 0;
    if (stream->start + stream->length + length > WINDOW) {
        memmove(waiting, waiting + stream->start, stream->length);
        stream->start = 0;
    }
    memcpy(waiting + stream->start + stream->length, data, length);
    stream->length += length;
    stream->has_waited = 1;
    return 0;
}

static void take_data(struct stream *stream, const char *data, uint32_t length) {
    if (stream->fd < 0 || stream->input_ended)
        return; /* what comes for a closed one is dropped */
    stream->input_ended = !length;
    ssize_t count = stream->length ? 0 : write_some(stream, data, length);
    if (count < 0)
        return;
    if (count < (ssize_t)length && keep(stream, data + count, length - count))
        end(stream);
    else if (!length || stream->length)
        flush(stream);
}

/* Passes on what a program has sent, as far as the credit goes. */
static void read_stream(struct stream *stream) {
    char data[PIECE];
    ssize_t count = read(stream->fd, data, stream->credit < sizeof data ? stream->credit : sizeof data);
    if (count < 0 && errno != EAGAIN && errno != EINTR) {
        end(stream);
        return;
    }
    if (count >= 0)
        send_frame(&all.channel, DATA_OUT, number_of(stream), data, count);
    stream->output_ended = !count;
    stream->credit -= count > 0 ? count : 0;
    watch(stream);
}

static void carry_stream(struct stream *stream) {
    int error = 0;
    socklen_t size = sizeof error;
    if (stream->fd < 0)
        return;
    if (stream->is_connecting) {
        if (getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &size) || error) {
            end(stream);
            return;
        }
        stream->is_connecting = 0;
    }
    if (stream->length || stream->input_ended || stream->is_closed)
        flush(stream);
    if (stream->fd >= 0 && stream->credit && !stream->output_ended)
        read_stream(stream);
}

static void read_datagrams(void) {
    char data[sizeof(struct endpoint) + DATAGRAM_MOST];
    for (int count = 0; count < AT_ONCE; count++) {
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(all.datagrams, data + sizeof(struct endpoint), DATAGRAM_MOST, 0, (struct sockaddr *)&from, &size);
        if (length < 0)
            return;
        struct endpoint endpoint = {from.sin_addr.s_addr, ntohs(from.sin_port)};
        memcpy(data, &endpoint, sizeof endpoint);
        send_frame(&all.channel, DATA_OUT, DATAGRAMS, data, sizeof endpoint + length);
    }
}

static void send_datagram(const char *data, uint32_t length) {
    struct endpoint endpoint;
    if (all.datagrams < 0 || length < sizeof endpoint)
        return;
    memcpy(&endpoint, data, sizeof endpoint);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(endpoint.port), .sin_addr.s_addr = endpoint.address};
    sendto(all.datagrams, data + sizeof endpoint, length - sizeof endpoint, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to);
}

static void carry_sockets(void) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(all.epoll, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        uint32_t at = events[i].data.u32;
        if (at < STREAMS)
            carry_stream(&all.streams[at]);
        else if (at == DATAGRAM_SOCKET)
            read_datagrams();
        else
            accept_some(all.listeners[at - FIRST_LISTENER]);
    }
}

static void take_frame(const struct frame *frame) {
    struct stream *stream = stream_of(frame->session);
    uint32_t number = 0;
    if (frame->length >= 4)
        memcpy(&number, frame->data, 4);
    if (frame->session == DATAGRAMS && frame->type == DATA_IN)
        send_datagram(frame->data, frame->length);
    else if (stream && frame->type == CONNECT)
        connect_stream(stream, frame);
    else if (!stream || !stream->used)
        return;
    else if (frame->type == DATA_IN)
        take_data(stream, frame->data, frame->length);
    else if (frame->type == CREDIT) {
        stream->credit = number < WINDOW - stream->credit ? stream->credit + number : WINDOW;
        watch(stream);
    } else if (frame->type == CLOSE) {
        stream->is_closed = 1;
        if (!stream->length || frame->length || stream->is_connecting) /* with a payload: at once, else when all is written */
            end(stream);
    }
}

static void read_lanes(void) {
    uint64_t before;
    do {
        struct frame frame;
        size_t at = 0;
        before = all.channel.lanes.received;
        if (read_frames(&all.channel))
            return;
        while (next_frame(&all.channel, &at, &frame))
            take_frame(&frame);
        drop_frames(&all.channel, at);
    } while (all.channel.lanes.received != before);
}

void poll_streams(struct pollfd polls[STREAM_POLLS]) {
    int is_on = all.channel.lanes.count;
    polls[0] = (struct pollfd){is_on ? all.epoll : -1, POLLIN, 0};
    polls[1] = (struct pollfd){is_on ? next_to_read(&all.channel) : -1, POLLIN, 0};
}

void carry_streams(const struct pollfd polls[STREAM_POLLS]) {
    if (polls[1].fd >= 0 && polls[1].revents)
        read_lanes();
    if (polls[0].fd >= 0 && polls[0].revents)
        carry_sockets();
}

/* A socket at `address` and `port`, in the set as `at`. */
static int open_socket(int kind, uint32_t address, uint16_t port, int at) {
    int one = 1, fd = socket(AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address)};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = at};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd >= 0 && !bind(fd, (struct sockaddr *)&own, sizeof own) && (kind == SOCK_DGRAM || !listen(fd, 1024)) &&
        !epoll_ctl(all.epoll, EPOLL_CTL_ADD, fd, &event))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* ADDRESS, tab, how many addresses from it on, tab, port. */
static int open_listeners(const char *value, struct why *why) {
    char text[INET_ADDRSTRLEN] = "";
    struct in_addr address;
    uint64_t count, port;
    size_t width = strcspn(value, "\t");
    const char *second = value + width + !!value[width], *third = strchr(second, '\t');
    if (width >= sizeof text || !third || parse_number(second, third - second, LISTENERS, &count) ||
        parse_number(third + 1, strlen(third + 1), 65535, &port))
        return explain(why, "the runner sent a place to listen that is none: %.80s", value);
    memcpy(text, value, width);
    if (inet_pton(AF_INET, text, &address) != 1 || count > (uint64_t)(LISTENERS - all.listener_count))
        return explain(why, "the runner sent places to listen that are none, or too many: %.80s", value);
    for (uint32_t i = 0; i < count; i++) {
        int at = all.listener_count, fd = open_socket(SOCK_STREAM, ntohl(address.s_addr) + i, port, FIRST_LISTENER + at);
        if (fd < 0)
            return explain(why, "cannot listen at %s, port %u: %s", text, (unsigned)port, strerror(errno));
        all.listeners[all.listener_count++] = fd;
    }
    return 0;
}

/* The ports rootdisk.1, rootdisk.2 and so on. */
static int open_lanes(const char *value, struct why *why) {
    uint64_t count;
    if (parse_number(value, strlen(value), LANES_MOST, &count) || !count)
        return explain(why, "the runner sent a number of lanes that is none: %.20s", value);
    for (uint64_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "rootdisk.%u", (unsigned)i + 1);
        int fd = find_port(name, 3);
        if (fd < 0 || fcntl(fd, F_SETFL, O_NONBLOCK))
            return explain(why, "the machine has no port %s", name);
        all.channel.fd = all.channel.lanes.fds[i] = fd;
    }
    all.channel.lanes.count = count;
    return 0;
}

int open_streams(const struct records *slot, const struct log *log, struct why *why) {
    struct rlimit files;
    const char *key, *value, *lanes = find_record(slot, "lanes"), *datagrams = find_record(slot, "datagrams");
    uint64_t port;
    all.channel.log = log;
    all.datagrams = -1;
    if (!lanes)
        return 0;
    if (!getrlimit(RLIMIT_NOFILE, &files)) { /* each stream is one, beside those of programs */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    /* What comes for the init does not interrupt a program that runs: more comes at once, and there are fewer switches between the
       two. It does not change what programs are given. musl has no function for it. */
    syscall(SYS_sched_setscheduler, 0, SCHED_BATCH | SCHED_RESET_ON_FORK, &(struct sched_param){0});
    all.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (all.epoll < 0)
        return explain(why, "epoll: %s", strerror(errno));
    all.waiting = mmap(NULL, (size_t)WINDOW * STREAMS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all.waiting == MAP_FAILED)
        return explain(why, "no memory");
    if (open_lanes(lanes, why))
        return -1;
    for (size_t at = 0; (value = next_record(slot, &at, &key));)
        if (!strcmp(key, "listen") && open_listeners(value, why))
            return -1;
    if (datagrams && !parse_number(datagrams, strlen(datagrams), 65535, &port)) /* a port of 127.0.0.1 */
        all.datagrams = open_socket(SOCK_DGRAM, INADDR_LOOPBACK, port, DATAGRAM_SOCKET);
    return datagrams && all.datagrams < 0 ? explain(why, "cannot receive datagrams at port %.20s: %s", datagrams, strerror(errno)) : 0;
}
