/* Messages: why something failed, and where that is told. */
#ifndef ROOTDISK_LOG_H
#define ROOTDISK_LOG_H

#include <stdarg.h>
#include <stddef.h>

/* Why a function has failed: one line for a person. */
struct why { char text[512]; };

struct log {
    int debug;
    struct channel *channel; /* NULL before there is one */
};

/* Writes `text` as a terminal may get it: what is not printable and the backslash become \n, \x1b, \u202e, as printable() of the
   runner has it. Ends where `room` does, after a whole character. */
void escape(const char *text, char *out, size_t room);

/* A line on standard error, escaped: names of an image and of users are in it. Nothing else writes one. What goes through the
   channel is escaped by the runner. */
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report_list(const char *format, va_list) __attribute__((format(printf, 1, 0)));

/* Sets the reason. Returns -1, so that a caller can return it. */
int explain(struct why *, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* With --debug: a line on the console and a LOG frame. */
void note(const struct log *, const char *format, ...) __attribute__((format(printf, 2, 3)));
#endif
