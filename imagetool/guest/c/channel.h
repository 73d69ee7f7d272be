/* The channel to the runner: frames and sessions; docs/layout-1.md, "The channel". */
#ifndef ROOTDISK_CHANNEL_H
#define ROOTDISK_CHANNEL_H

#include "log.h"
#include "program.h"
#include <poll.h>
#include <stddef.h>
#include <stdint.h>

/* Types of frames. runner/channel/messages.py has the same list; a test compares them. */
#define MESSAGES(X) \
    X(READY, 1) X(STDOUT, 2) X(STDERR, 3) X(EXIT, 4) X(ERROR, 5) X(LOG, 6) X(POWER, 7) X(PAUSED, 8) X(RESUMED, 9) \
    X(ACCEPTED, 10) X(DATA_OUT, 11) X(CLOSED, 12) X(CONNECT, 27) X(DATA_IN, 28) X(CLOSE, 29) \
    X(STDIN, 16) X(RESIZE, 17) X(SIGNAL, 18) X(EXEC, 19) X(ACK, 20) X(STOP, 21) X(CREDIT, 22) X(HOLD, 23) X(RESUME, 24) X(TIME, 25) \
    X(PAUSE, 26)
#define AS_ENUMERATOR(name, number) name = number,
enum message { MESSAGES(AS_ENUMERATOR) };
#undef AS_ENUMERATOR

enum { VERSION = 3, HEADER = 8, WINDOW = 256 << 10, FRAME_MAX = 256 << 10, SESSIONS = 256 };

/* What READY says of this init beside its version: bits of a second number. */
enum feature { HAS_STREAMS = 1 << 1, HAS_DETACH = 1 << 2, HAS_PAUSE = 1 << 3 };

/* Numbers of streams: those that programs of the guest have opened, and those of the runner; and datagrams. */
enum { ACCEPTED_FIRST = 0x8000, ACCEPTED_MOST = 512, CONNECTED_FIRST = 0xC000, CONNECTED_MOST = 256, DATAGRAMS = 0xFFFF };

/* What POWER says: how a program ended the machine. Reboot is not done, so it counts as a failure. */
enum power { POWERED_OFF = 1, HALTED = 2, REBOOTED = 3, REBOOTED_STATUS = 129 };

struct frame { int type, session; char *data; uint32_t length; };

struct session {
    int used, id, pid, fds[3], exited, status, tty, is_first;
    enum power power;
    int starts;                /* it has become the program; known of session 0, and of those that nobody waits for */
    int silent;                /* the runner has been told that it failed: nothing more of it */
    uint32_t credit;           /* bytes of output the runner still takes */
    char *input;               /* WINDOW bytes, waiting to be written to the program */
    size_t waiting;
    int input_ended;
};

/* Streams go through ports of their own, LANES_MOST at most: byte n through lane n / STRIPE % count. A port takes or gives no more
   than a page at a time, so that several carry more than one, and what a network has does not keep an order waiting. */
enum { LANES_MOST = 16, STRIPE = 4096 };
struct lanes { int fds[LANES_MOST], count; uint64_t sent, received; };

struct channel {
    int fd;                    /* -1 without, or if the runner has gone */
    int is_console;            /* there is no runner: output goes to the console */
    struct lanes lanes;        /* in place of it, if there are any */
    char incoming[FRAME_MAX + HEADER];
    size_t received, skipped;  /* skipped: bytes of a frame that is too long, still to come */
    struct session sessions[SESSIONS];
    const struct log *log;
    double kill_at;
    int is_to_pause;           /* PAUSE has come */
    int acknowledged;
};

/* frames.c */
void send_frame(struct channel *, int type, int session, const void *data, size_t length);
void send_number(struct channel *, int type, int session, uint32_t number);
int read_frames(struct channel *); /* -1 if the runner has gone */
int next_to_read(const struct channel *); /* the descriptor to wait for */
int next_frame(struct channel *, size_t *at, struct frame *);
void drop_frames(struct channel *, size_t length);

int wait_for(struct channel *, int type, struct records *payload, struct why *); /* free its data; other frames are dropped */

/* sessions.c */
struct session *find_session(struct channel *, int id);
int start_session(struct channel *, int id, const struct program *, struct why *);
void take_input(struct channel *, struct session *, const char *data, uint32_t length);
void feed(struct channel *, struct session *);
int carry(struct channel *, struct session *, int which);
void signal_session(struct session *, uint32_t number);
void resize(struct session *, const char *data, uint32_t length);
void part(struct channel *);
void reap(struct channel *);
int finish(struct channel *);
void finish_by_power(struct channel *, enum power);

/* serve.c: carries everything until the sandbox ends. -1 and why if the main program cannot be started. */
int serve(struct channel *, const struct program *, struct why *);

/* snapshot.c: stands still, to be saved. It goes on as the same machine, or as another one. */
void stand_still(struct channel *, const struct program *);
void send_ready(struct channel *);

/* streams.c */
int open_streams(const struct records *slot, const struct log *, struct why *); /* as the slot says; 0, or -1 and why */
enum { STREAM_POLLS = 2 };
void poll_streams(struct pollfd polls[STREAM_POLLS]);
void carry_streams(const struct pollfd polls[STREAM_POLLS]);

/* port.c */
int find_port(const char *name, double timeout);
void hold_disk(int held, const struct log *);
#endif
