/* Messages: why something failed, and where that is told. */
#ifndef ROOTDISK_LOG_H
#define ROOTDISK_LOG_H

/* Why a function has failed: one line for a person. */
struct why { char text[512]; };

struct log {
    int debug;
    struct channel *channel; /* NULL before there is one */
};

/* Sets the reason. Returns -1, so that a caller can return it. */
int explain(struct why *, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* With --debug: a line on the console and a LOG frame. */
void note(const struct log *, const char *format, ...) __attribute__((format(printf, 2, 3)));
#endif
