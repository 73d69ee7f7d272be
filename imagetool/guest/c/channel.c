/* The channel to the runner, and the loop that carries everything: frames, programs' input and output, dead children. */
#include "init.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

struct session {
    int used, id, pid, fds[3], exited, status, tty;
    int silent;                /* the runner has been told that it failed: nothing more of it */
    uint32_t credit;           /* bytes of output the runner still takes */
    char *input;               /* WINDOW bytes, waiting to be written to the program */
    size_t waiting;
    int input_ended;
};

static struct session sessions[SESSIONS];
static char incoming[FRAME_MAX + 8];
static size_t received, skipped; /* bytes of a frame that is too long, still to come */
static double kill_at;
static int acknowledged;

static void write_all(const void *data, size_t length) {
    for (const char *at = data; length;) {
        ssize_t count = write(channel, at, length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && errno == EAGAIN) {
            poll(&(struct pollfd){channel, POLLOUT, 0}, 1, 100);
            continue;
        }
        if (count <= 0) {
            channel = -1; /* the runner has gone: its sandbox ends */
            return;
        }
        at += count;
        length -= count;
    }
}

void send_frame(int type, int session, const void *data, size_t length) {
    static char out[(64 << 10) + 8];
    uint32_t size = length;
    uint16_t id = session;
    if (channel < 0 || length > sizeof out - 8)
        return;
    memcpy(out, &size, 4);
    out[4] = type;
    out[5] = 0;
    memcpy(out + 6, &id, 2);
    memcpy(out + 8, data, length);
    write_all(out, length + 8);
}

/* A frame of a session, as long as the runner knows that session. */
static void tell(const struct session *session, int type, const void *data, size_t length) {
    if (!session->silent)
        send_frame(type, session->id, data, length);
}

static void send_number(int type, int session, uint32_t number) { send_frame(type, session, &number, 4); }

static struct session *find(int id) {
    for (int i = 0; i < SESSIONS; i++)
        if (sessions[i].used && sessions[i].id == id)
            return &sessions[i];
    return NULL;
}

/* Starts a program as a session: NULL, or why not. */
static const char *start(int id, const struct program *program) {
    struct session *session = NULL;
    const char *why = NULL;
    for (int i = 0; i < SESSIONS && !session; i++)
        if (!sessions[i].used)
            session = &sessions[i];
    if (!session)
        return "too many programs run already";
    *session = (struct session){.used = 1, .id = id, .credit = WINDOW, .tty = program->tty, .input = malloc(WINDOW)};
    session->pid = session->input ? spawn(program, session->fds, &why) : -1;
    if (session->pid < 0) {
        free(session->input);
        session->used = 0;
        return why ? why : "no memory";
    }
    return NULL;
}

static void drop(struct session *session, int which) {
    if (session->fds[which] >= 0)
        close(session->fds[which]);
    session->fds[which] = -1;
}

static void feed(struct session *session) {
    while (session->fds[0] >= 0 && session->waiting) {
        ssize_t count = write(session->fds[0], session->input, session->waiting);
        if (count < 0 && errno == EAGAIN)
            return;
        if (count <= 0) { /* it reads no more: what comes is taken and thrown away */
            count = session->waiting;
            if (!session->tty)
                drop(session, 0);
        }
        session->waiting -= count;
        memmove(session->input, session->input + count, session->waiting);
        uint32_t number = count;
        tell(session, CREDIT, &number, 4);
    }
    if (session->input_ended && !session->waiting && session->fds[0] >= 0) {
        if (session->tty) {
            char end = 4; /* VEOF */
            if (write(session->fds[0], &end, 1) < 0)
                note("end of input: %s", strerror(errno));
            session->input_ended = 0;
        } else {
            drop(session, 0);
        }
    }
}

/* Moves what a program wrote, as far as the runner's credit goes; whether there may be more. */
static int carry(struct session *session, int which) {
    char data[32 << 10];
    size_t room = session->credit < sizeof data ? session->credit : sizeof data;
    if (session->fds[which] < 0 || !room)
        return session->fds[which] >= 0;
    ssize_t count = read(session->fds[which], data, room);
    if (count > 0) {
        session->credit -= count;
        tell(session, which == 1 ? OUT : ERR, data, count);
        return 1;
    }
    if (count == 0 || errno != EAGAIN || session->exited) /* EIO: the terminal's other side is closed */
        drop(session, which);
    return 0;
}

static void signal_session(struct session *session, int number) {
    if (!session || session->exited || number < 1 || number > 64)
        return;
    kill(session->tty ? -session->pid : session->pid, number);
}

static int stop_signal(void) {
    static const struct { const char *name; int number; } names[] = {
        {"HUP", SIGHUP}, {"INT", SIGINT}, {"QUIT", SIGQUIT}, {"KILL", SIGKILL}, {"USR1", SIGUSR1},
        {"USR2", SIGUSR2}, {"TERM", SIGTERM}, {"WINCH", SIGWINCH}, {"PWR", SIGPWR}};
    const char *text = find_record(&process, "stopsignal");
    if (text && !strncmp(text, "SIG", 3))
        text += 3;
    for (size_t i = 0; text && i < sizeof names / sizeof *names; i++)
        if (!strcmp(text, names[i].name))
            return names[i].number;
    if (text && !strncmp(text, "RTMIN+", 6))
        return SIGRTMIN + atoi(text + 6);
    return text && atoi(text) > 0 ? atoi(text) : SIGTERM;
}

/* Tells the runner that a session has failed, and its program to hang up. The main program's cannot fail. */
static void fail(struct session *session, const char *why) {
    if (session->silent || !session->id)
        return;
    tell(session, ERROR, why, strlen(why));
    session->silent = 1;
    signal_session(session, SIGHUP);
}

static void execute(int id, const char *data, uint32_t length, const struct program *base) {
    struct program program = *base;
    const char *why;
    char *copy = malloc(length + 1);
    if (!copy) {
        send_frame(ERROR, id, "no memory", 9);
        return;
    }
    memcpy(copy, data, length);
    exec_program(&program, &(struct records){copy, length});
    why = program.argv ? start(id, &program) : "it names no program";
    if (why)
        send_frame(ERROR, id, why, strlen(why));
    free(program.argv);
    free(program.env);
    free(copy);
}

static void handle(int type, int id, char *data, uint32_t length, const struct program *base) {
    struct session *session = find(id);
    uint32_t number = 0;
    if (length >= 4)
        memcpy(&number, data, 4);
    switch (type) {
    case IN:
        if (!session)
            break;
        if (!length)
            session->input_ended = 1;
        else if (session->fds[0] < 0)
            tell(session, CREDIT, &length, 4);
        else if (length > WINDOW - session->waiting)
            fail(session, "the runner sent more input than it was allowed");
        else
            memcpy(session->input + session->waiting, data, length), session->waiting += length;
        feed(session);
        break;
    case RESIZE:
        if (session && session->tty && length >= 4) {
            uint16_t size[2];
            memcpy(size, data, 4);
            ioctl(session->fds[1], TIOCSWINSZ, &(struct winsize){.ws_row = size[0], .ws_col = size[1]});
        }
        break;
    case SIGNAL: signal_session(session, number); break;
    case EXEC:
        if (!session && id)
            execute(id, data, length, base);
        break;
    case ACK: acknowledged = 1; break;
    case STOP:
        signal_session(find(0), stop_signal());
        kill_at = now() + number;
        break;
    case HOLD: hold_disk(number != 0); break;
    case CREDIT:
        if (session)
            session->credit = number < WINDOW - session->credit ? session->credit + number : WINDOW;
        break;
    default: note("a frame of unknown type %d", type); /* of a runner that knows more */
    }
}

static void receive(const struct program *base) {
    ssize_t count = read(channel, incoming + received, sizeof incoming - received);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (count <= 0) {
        channel = -1;
        return;
    }
    size_t at = 0, passed = skipped < (size_t)count ? skipped : (size_t)count;
    skipped -= passed;
    received += count - passed;
    memmove(incoming, incoming + passed, received);
    uint32_t length;
    uint16_t id;
    while (received - at >= 8) {
        memcpy(&length, incoming + at, 4);
        memcpy(&id, incoming + at + 6, 2);
        if (length > FRAME_MAX) {
            note("a frame of %u bytes", length);
            skipped = 8 + (size_t)length - (received - at); /* which are fewer: as many as fit */
            at = received;
            break;
        }
        if (received - at < 8 + length)
            break;
        handle((uint8_t)incoming[at + 4], id, incoming + at + 8, length, base);
        at += 8 + length;
    }
    memmove(incoming, incoming + at, received -= at);
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < SESSIONS; i++)
            if (sessions[i].used && sessions[i].pid == pid && !sessions[i].exited) {
                sessions[i].exited = 1;
                sessions[i].status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
            }
}

/* Sends the EXIT of programs that have ended and whose output is all sent; whether it was the main one. */
static int finish(void) {
    int ended = 0;
    for (int i = 0; i < SESSIONS; i++) {
        struct session *session = &sessions[i];
        if (!session->used || !session->exited)
            continue;
        while (session->credit && (carry(session, 1) | carry(session, 2)))
            ;
        if (session->fds[1] >= 0 || session->fds[2] >= 0)
            continue; /* waits for credit */
        if (channel < 0 && !session->id)
            dprintf(2, "rootdisk: exit %d\n", session->status);
        uint32_t status = session->status;
        tell(session, EXIT, &status, 4);
        drop(session, 0);
        free(session->input);
        ended |= !session->id;
        session->used = 0;
    }
    return ended;
}

void serve(struct program *program) {
    int had_channel = channel >= 0;
    double leave_at = 0;
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    signal(SIGPIPE, SIG_IGN);
    int dead = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
    if (had_channel)
        fcntl(channel, F_SETFL, O_NONBLOCK);
    const char *why = start(0, program);
    if (why)
        die("cannot start %s: %s", program->argv[0], why);
    send_number(READY, 0, VERSION);
    for (;;) {
        struct pollfd polls[2 + 3 * SESSIONS];
        struct { struct session *session; int which; } whose[2 + 3 * SESSIONS];
        int count = 2;
        polls[0] = (struct pollfd){channel, POLLIN, 0};
        polls[1] = (struct pollfd){dead, POLLIN, 0};
        for (int i = 0; i < SESSIONS; i++)
            for (int which = 0; sessions[i].used && which < 3; which++) {
                struct session *session = &sessions[i];
                if (session->fds[which] < 0 || (which ? !session->credit : !session->waiting))
                    continue;
                whose[count].session = session;
                whose[count].which = which;
                polls[count++] = (struct pollfd){session->fds[which], which ? POLLIN : POLLOUT, 0};
            }
        double until = leave_at ? leave_at : kill_at, rest = until - now();
        poll(polls, count, !until ? -1 : rest < 0 ? 0 : rest > 3600 ? 3600000 : (int)(rest * 1000) + 1);
        struct signalfd_siginfo info;
        while (read(dead, &info, sizeof info) > 0)
            ;
        for (int i = 2; i < count; i++)
            if (polls[i].revents)
                whose[i].which ? (void)carry(whose[i].session, whose[i].which) : feed(whose[i].session);
        reap();
        if (channel >= 0 && polls[0].revents)
            receive(program);
        if (finish())
            leave_at = now() + (had_channel ? 5 : 0);
        if (kill_at && now() >= kill_at) {
            kill_at = 0;
            signal_session(find(0), SIGKILL);
        }
        if (acknowledged || (leave_at && now() >= leave_at) || (had_channel && channel < 0))
            power_off();
    }
}
