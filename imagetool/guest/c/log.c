/* Messages. */
#include "log.h"
#include "channel.h"
#include <stdio.h>
#include <string.h>

enum { LINE_MOST = 1024 };

/* The character of UTF-8 at `text` and its width; -1 and 1 if the byte there begins none. A NUL ends `text`. */
static long decode(const char *text, size_t *width) {
    const unsigned char *at = (const unsigned char *)text;
    static const long least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t count = *at < 0x80 ? 1 : *at >= 0xF0 && *at < 0xF8 ? 4 : *at >= 0xE0 && *at < 0xF0 ? 3 : *at >= 0xC0 && *at < 0xE0 ? 2 : 0;
    long found = count == 1 ? *at : *at & (0x7F >> count);
    *width = 1;
    for (size_t i = 1; i < count; i++) {
        if ((at[i] & 0xC0) != 0x80)
            return -1;
        found = found << 6 | (at[i] & 0x3F);
    }
    if (!count || found < least[count] || found > 0x10FFFF || (found >= 0xD800 && found < 0xE000))
        return -1;
    *width = count;
    return found;
}

/* Control characters, what has no shape or turns the direction of a line round, and the backslash that all escapes begin with. */
static int is_plain(long character) {
    static const long hidden[][2] = {{0x7F, 0xA0}, {0xAD, 0xAD}, {0x61C, 0x61C}, {0x200B, 0x200F}, {0x2028, 0x202E}, {0x2060, 0x206F},
                                     {0xFEFF, 0xFEFF}, {0xFFF0, 0xFFFB}, {0xE0000, 0x10FFFF}};
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        if (character >= hidden[i][0] && character <= hidden[i][1])
            return 0;
    return character >= ' ' && character != '\\';
}

void escape(const char *text, char *out, size_t room) {
    for (size_t width, used = 0; *text; text += width, used += strlen(out + used)) {
        char shown[16];
        long character = decode(text, &width);
        if (character >= 0 && is_plain(character))
            snprintf(shown, sizeof shown, "%.*s", (int)width, text);
        else if (character < 0)
            snprintf(shown, sizeof shown, "\\x%02x", (unsigned char)*text);
        else if (character == '\n' || character == '\r' || character == '\t' || character == '\\')
            snprintf(shown, sizeof shown, "\\%c", character == '\n' ? 'n' : character == '\r' ? 'r' : character == '\t' ? 't' : '\\');
        else
            snprintf(shown, sizeof shown, character < 0x100 ? "\\x%02lx" : character < 0x10000 ? "\\u%04lx" : "\\U%08lx", character);
        if (used + strlen(shown) >= room)
            return;
        strcpy(out + used, shown);
    }
}

void report_list(const char *format, va_list arguments) {
    char text[LINE_MOST], line[4 * LINE_MOST] = "";
    vsnprintf(text, sizeof text, format, arguments);
    escape(text, line, sizeof line);
    dprintf(2, "rootdisk: %s\n", line);
}

void report(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report_list(format, arguments);
    va_end(arguments);
}

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
    report("%s", text);
    if (log->channel)
        send_frame(log->channel, LOG, 0, text, strlen(text));
}
