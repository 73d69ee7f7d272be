/* The loop that carries everything: frames, programs' input and output, dead children. */
#include "channel.h"
#include "records.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

double now(void);

static void execute(struct channel *channel, const struct frame *frame, const struct program *base) {
    struct program program = {0};
    struct why why;
    int failed = -1;
    char *copy = malloc(frame->length + 1);
    if (copy) {
        memcpy(copy, frame->data, frame->length);
        failed = exec_program(&program, base, &(struct records){copy, frame->length}, &why) ||
                 start_session(channel, frame->session, &program, &why);
    } else {
        explain(&why, "no memory");
    }
    if (failed)
        send_frame(channel, ERROR, frame->session, why.text, strlen(why.text));
    else if (program.is_detached && find_session(channel, frame->session)->starts)
        send_frame(channel, READY, frame->session, "", 0);
    forget_program(&program);
    free(copy);
}

static void handle(struct channel *channel, const struct frame *frame, const struct program *base) {
    struct session *session = find_session(channel, frame->session);
    uint32_t number = 0;
    if (frame->length >= 4)
        memcpy(&number, frame->data, 4);
    switch (frame->type) {
    case STDIN:
        if (session)
            take_input(channel, session, frame->data, frame->length);
        break;
    case RESIZE:
        if (session)
            resize(session, frame->data, frame->length);
        break;
    case SIGNAL: signal_session(session, number); break;
    case EXEC:
        if (!session && frame->session)
            execute(channel, frame, base);
        break;
    case ACK: channel->acknowledged = 1; break;
    case STOP:
        signal_session(find_session(channel, 0), base->stop_signal);
        channel->kill_at = now() + number;
        break;
    case PAUSE: channel->is_to_pause = 1; break;
    case HOLD: hold_disk(number != 0, channel->log); break;
    case CREDIT:
        if (session)
            session->credit = number < WINDOW - session->credit ? session->credit + number : WINDOW;
        break;
    default: note(channel->log, "a frame of unknown type %d", frame->type); /* of a runner that knows more */
    }
}

static void handle_all(struct channel *channel, const struct program *base) {
    struct frame frame;
    size_t at = 0;
    while (next_frame(channel, &at, &frame)) {
        handle(channel, &frame, base);
        if (!channel->is_to_pause)
            continue;
        drop_frames(channel, at); /* what comes now is read by another */
        at = channel->is_to_pause = 0;
        stand_still(channel, base);
    }
    drop_frames(channel, at);
}

void send_ready(struct channel *channel) {
    send_frame(channel, READY, 0, (uint32_t[]){VERSION, HAS_STREAMS | HAS_DETACH | HAS_PAUSE}, 2 * sizeof(uint32_t));
}

/* What a signal to process 1 asks for: as busybox, sysvinit and systemd send them. */
static enum power asked_by(uint32_t number) {
    switch (number) {
    case SIGUSR2: case SIGPWR: case RT_MIN + 4: return POWERED_OFF;
    case SIGUSR1: case RT_MIN + 3: return HALTED;
    case SIGTERM: case SIGINT: case RT_MIN + 5: return REBOOTED;
    default: return 0;
    }
}

/* Signals come through a descriptor: dead children, and what programs send to process 1. */
static int open_signals(void) {
    sigset_t set;
    static const int numbers[] = {SIGCHLD, SIGUSR1, SIGUSR2, SIGPWR, SIGTERM, SIGINT, RT_MIN + 3, RT_MIN + 4, RT_MIN + 5};
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaddset(&set, numbers[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void take_signals(struct channel *channel, int signals) {
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info) {
        enum power power = asked_by(info.ssi_signo);
        if (power && getpid() == 1)
            finish_by_power(channel, power);
    }
}

enum { OTHERS = 2 + STREAM_POLLS }; /* descriptors beside those of programs */
struct waits { struct pollfd polls[OTHERS + 3 * SESSIONS]; struct { struct session *session; int which; } whose[OTHERS + 3 * SESSIONS]; int count; };

static void collect(struct channel *channel, int signals, struct waits *waits) {
    waits->polls[0] = (struct pollfd){channel->fd, POLLIN, 0};
    waits->polls[1] = (struct pollfd){signals, POLLIN, 0};
    poll_streams(waits->polls + 2);
    waits->count = OTHERS;
    for (int i = 0; i < SESSIONS; i++)
        for (int which = 0; channel->sessions[i].used && which < 3; which++) {
            struct session *session = &channel->sessions[i];
            if (session->fds[which] < 0 || (which ? !session->credit : !session->waiting))
                continue;
            waits->whose[waits->count].session = session;
            waits->whose[waits->count].which = which;
            waits->polls[waits->count++] = (struct pollfd){session->fds[which], which ? POLLIN : POLLOUT, 0};
        }
}

int serve(struct channel *channel, const struct program *program, struct why *why) {
    static struct waits waits;
    int had_channel = channel->fd >= 0, signals = open_signals();
    double leave_at = 0;
    if (had_channel)
        fcntl(channel->fd, F_SETFL, O_NONBLOCK);
    if (start_session(channel, 0, program, why))
        return explain(why, "cannot start %.200s: %s", program->argv.items[0], strdupa(why->text));
    if (find_session(channel, 0)->starts) /* else its message and exit status say why not */
        send_ready(channel);
    handle_all(channel, program); /* what came with the last orders of a template */
    for (;;) {
        collect(channel, signals, &waits);
        double until = leave_at ? leave_at : channel->kill_at, rest = until - now();
        poll(waits.polls, waits.count, !until ? -1 : rest < 0 ? 0 : rest > 3600 ? 3600000 : (int)(rest * 1000) + 1);
        take_signals(channel, signals);
        for (int i = OTHERS; i < waits.count; i++)
            if (waits.polls[i].revents)
                waits.whose[i].which ? (void)carry(channel, waits.whose[i].session, waits.whose[i].which)
                                     : feed(channel, waits.whose[i].session);
        reap(channel);
        if (channel->fd >= 0 && waits.polls[0].revents)
            if (!read_frames(channel))
                handle_all(channel, program);
        carry_streams(waits.polls + 2);
        if (finish(channel))
            leave_at = now() + (had_channel ? 5 : 0);
        if (channel->kill_at && now() >= channel->kill_at) {
            channel->kill_at = 0;
            signal_session(find_session(channel, 0), SIGKILL);
        }
        if (channel->acknowledged || (leave_at && now() >= leave_at) || (had_channel && channel->fd < 0))
            return 0;
    }
}
