/* Sessions: a program each, its input and output, and how it ended. */
#include "channel.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

struct session *find_session(struct channel *channel, int id) {
    for (int i = 0; i < SESSIONS; i++)
        if (channel->sessions[i].used && channel->sessions[i].id == id)
            return &channel->sessions[i];
    return NULL;
}

/* A frame of a session, as long as the runner knows that session. */
static void tell(struct channel *channel, const struct session *session, int type, const void *data, size_t length) {
    if (!session->silent)
        send_frame(channel, type, session->id, data, length);
}

int start_session(struct channel *channel, int id, const struct program *program, struct why *why) {
    struct session *session = NULL;
    for (int i = 0; i < SESSIONS && !session; i++)
        if (!channel->sessions[i].used)
            session = &channel->sessions[i];
    if (!session)
        return explain(why, "too many programs run already");
    char *input = malloc(WINDOW);
    if (!input)
        return explain(why, "no memory");
    *session = (struct session){.used = 1, .id = id, .credit = WINDOW, .tty = program->tty, .is_first = program->is_first, .input = input};
    session->pid = spawn(program, channel->fd >= 0 || channel->is_console, session->fds, id && !program->is_detached ? NULL : &session->starts, why);
    if (session->pid < 0) {
        free(input);
        session->input = NULL;
        session->used = 0;
        return -1;
    }
    return 0;
}

static void drop(struct session *session, int which) {
    if (session->fds[which] >= 0)
        close(session->fds[which]);
    session->fds[which] = -1;
}

void feed(struct channel *channel, struct session *session) {
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
        tell(channel, session, CREDIT, &number, 4);
    }
    if (session->input_ended && !session->waiting && session->fds[0] >= 0) {
        if (session->tty) {
            char end = 4; /* VEOF */
            if (write(session->fds[0], &end, 1) < 0)
                note(channel->log, "end of input: %s", strerror(errno));
            session->input_ended = 0;
        } else {
            drop(session, 0);
        }
    }
}

/* Tells the runner that a session has failed, and its program to hang up. The main program's cannot fail. */
static void fail(struct channel *channel, struct session *session, const char *why) {
    if (session->silent || !session->id)
        return;
    tell(channel, session, ERROR, why, strlen(why));
    session->silent = 1;
    signal_session(session, SIGHUP);
}

void take_input(struct channel *channel, struct session *session, const char *data, uint32_t length) {
    if (!length)
        session->input_ended = 1;
    else if (session->fds[0] < 0)
        tell(channel, session, CREDIT, &length, 4);
    else if (length > WINDOW - session->waiting)
        fail(channel, session, "the runner sent more input than it was allowed");
    else
        memcpy(session->input + session->waiting, data, length), session->waiting += length;
    feed(channel, session);
}

/* Writes output to the console. It waits for a slow one: there is nobody else to serve. */
static void show(const char *data, size_t length) {
    while (length) {
        ssize_t count = write(1, data, length);
        if (count < 0 && errno != EINTR)
            return;
        data += count > 0 ? count : 0;
        length -= count > 0 ? count : 0;
    }
}

/* Moves what a program wrote, as far as the runner's credit goes; whether there may be more. */
int carry(struct channel *channel, struct session *session, int which) {
    char data[32 << 10];
    size_t room = session->credit < sizeof data ? session->credit : sizeof data;
    if (session->fds[which] < 0 || !room)
        return session->fds[which] >= 0;
    ssize_t count = read(session->fds[which], data, room);
    if (count > 0 && channel->is_console) {
        show(data, count);
        return 1;
    }
    if (count > 0) {
        session->credit -= session->silent ? 0 : count; /* nobody gives new credit for what nobody gets */
        tell(channel, session, which == 1 ? STDOUT : STDERR, data, count);
        return 1;
    }
    if (count == 0 || errno != EAGAIN || session->exited) /* EIO: the terminal's other side is closed */
        drop(session, which);
    return 0;
}

void signal_session(struct session *session, uint32_t number) {
    if (session && !session->exited && number >= 1 && number <= SIGNAL_MOST)
        kill(session->tty ? -session->pid : session->pid, number);
}

void resize(struct session *session, const char *data, uint32_t length) {
    uint16_t size[2];
    if (!session->tty || length != sizeof size)
        return;
    memcpy(size, data, sizeof size);
    ioctl(session->fds[1], TIOCSWINSZ, &(struct winsize){.ws_row = size[0], .ws_col = size[1]});
}

static void set_power(struct session *session, enum power power) {
    session->power = power;
    session->status = power == REBOOTED ? REBOOTED_STATUS : 0;
}

/* The machine goes on as another one, whose runner knows only the main program. Commands of `exec` go on, but what they write is
   thrown away, and their input has ended. */
void part(struct channel *channel) {
    for (int i = 0; i < SESSIONS; i++) {
        struct session *session = &channel->sessions[i];
        session->credit = WINDOW;
        if (!session->used || !session->id)
            continue;
        session->id = -1; /* of no frame */
        session->silent = session->input_ended = 1;
        feed(channel, session);
    }
    channel->kill_at = 0;
}

void reap(struct channel *channel) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (int i = 0; i < SESSIONS; i++) {
            struct session *session = &channel->sessions[i];
            if (!session->used || session->pid != pid || session->exited)
                continue;
            session->exited = 1;
            session->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
            /* reboot(2) in a PID namespace: its process 1 ends by one of these, which nobody else can send it. */
            if (session->is_first && WIFSIGNALED(status) && (WTERMSIG(status) == SIGINT || WTERMSIG(status) == SIGHUP))
                set_power(session, WTERMSIG(status) == SIGINT ? POWERED_OFF : REBOOTED);
        }
}

/* Sends the EXIT of programs that have ended and whose output is all sent; whether it was the main one. */
int finish(struct channel *channel) {
    int ended = 0;
    for (int i = 0; i < SESSIONS; i++) {
        struct session *session = &channel->sessions[i];
        if (!session->used || !session->exited)
            continue;
        while (session->credit && (carry(channel, session, 1) | carry(channel, session, 2)))
            ;
        if (session->fds[1] >= 0 || session->fds[2] >= 0)
            continue; /* waits for credit */
        if (channel->fd < 0 && !session->id)
            report("exit %d", session->status);
        uint32_t status = session->status;
        if (session->power)
            send_number(channel, POWER, 0, session->power);
        tell(channel, session, EXIT, &status, 4);
        drop(session, 0);
        free(session->input);
        session->input = NULL;
        ended |= !session->id;
        session->used = 0;
    }
    return ended;
}

/* The machine is to end because a program has asked for it. The main program ends with it; what it has written goes out. */
void finish_by_power(struct channel *channel, enum power power) {
    struct session *session = find_session(channel, 0);
    if (!session)
        return;
    while (session->credit && (carry(channel, session, 1) | carry(channel, session, 2)))
        ;
    if (!session->exited)
        set_power(session, power);
    session->exited = 1;
    drop(session, 1);
    drop(session, 2);
}
