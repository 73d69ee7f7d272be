/* Messages. */
#include "log.h"
#include "channel.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int explain(struct why *why, const char *format, ...) {
    char text[sizeof why->text]; /* a reason may be made from the one before */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(why->text, text, sizeof text);
    return -1;
}

void note(const struct log *log, const char *format, ...) {
    char text[512];
    va_list arguments;
    if (!log->debug)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    dprintf(2, "rootdisk: %s\n", text);
    if (log->channel)
        send_frame(log->channel, LOG, 0, text, strlen(text));
}
