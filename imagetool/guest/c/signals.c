/* Signals by name, with the kernel's numbers. Case does not matter, as in the runner. */
#include "program.h"
#include <signal.h>
#include <string.h>
#include <strings.h>

#define NAMES(X) \
    X(HUP) X(INT) X(QUIT) X(ILL) X(TRAP) X(ABRT) X(IOT) X(BUS) X(FPE) X(KILL) X(USR1) X(SEGV) X(USR2) X(PIPE) X(ALRM) X(TERM) \
    X(STKFLT) X(CHLD) X(CONT) X(STOP) X(TSTP) X(TTIN) X(TTOU) X(URG) X(XCPU) X(XFSZ) X(VTALRM) X(PROF) X(WINCH) X(IO) X(POLL) \
    X(PWR) X(SYS)
#define AS_ENTRY(name) {#name, SIG##name},

/* RTMIN, RTMIN+n, RTMAX or RTMAX-n. */
static int parse_real_time(const char *text) {
    uint64_t number = 0;
    int from_top = !strncasecmp(text, "RTMAX", 5);
    if (!from_top && strncasecmp(text, "RTMIN", 5))
        return 0;
    text += 5;
    if (*text && (*text != (from_top ? '-' : '+') || parse_number(text + 1, strlen(text + 1), SIGNAL_MOST - RT_MIN, &number)))
        return 0;
    return from_top ? SIGNAL_MOST - (int)number : RT_MIN + (int)number;
}

int parse_signal(const char *text) {
    static const struct { const char *name; int number; } names[] = {NAMES(AS_ENTRY) {"CLD", SIGCHLD}};
    uint64_t number;
    if (!parse_number(text, strlen(text), SIGNAL_MOST, &number))
        return number;
    if (!strncasecmp(text, "SIG", 3))
        text += 3;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcasecmp(text, names[i].name))
            return names[i].number;
    return parse_real_time(text);
}
