/* The guest's units on the host, one command each: test_units.py says what is asked. Account files come from the directory
   that $ROOT names. Built with sanitizers. */
#include "guest.h"
#include "copy.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

double now(void) { return 0; }

/* In place of read_file() in users.c and program.c. */
char *read_below(const char *path, size_t most, size_t *length) {
    char full[4096];
    snprintf(full, sizeof full, "%s%s", getenv("ROOT"), path);
    return read_file(full, most, length);
}

static struct records read_input(void) {
    static char data[1 << 20];
    return (struct records){data, fread(data, 1, sizeof data, stdin)};
}

static int say_user(const char *text) {
    struct user user;
    struct why why;
    if (find_user(text, &user, &why)) {
        printf("error: %s\n", why.text);
        return 0;
    }
    printf("%u %u [", user.uid, user.gid);
    for (size_t i = 0; i < user.count; i++)
        printf("%s%u", i ? " " : "", user.groups[i]);
    printf("] %s\n", user.home);
    forget_user(&user);
    return 0;
}

static int say_records(void) {
    struct records records = read_input();
    const char *key, *value;
    for (size_t at = 0; (value = next_record(&records, &at, &key));)
        printf("%s=%s%c", key, value, 0);
    return 0;
}

static int say_environment(void) {
    struct records records = read_input();
    struct list env = {0};
    if (append_records(&env, &records, "env") || keep_last(&env))
        return 1;
    for (size_t i = 0; i < env.count; i++)
        printf("%s%c", env.items[i], 0);
    free(env.items);
    return 0;
}

/* Frames as they come in, in pieces of argv's size. */
static int say_frames(size_t piece) {
    static struct channel channel;
    static const struct log log;
    struct records input = read_input();
    struct frame frame;
    int ends[2];
    if (pipe(ends))
        return 1;
    channel.fd = ends[0];
    channel.log = &log;
    for (size_t at = 0, length; at < input.length; at += length) {
        size_t handled = 0;
        length = input.length - at < piece ? input.length - at : piece;
        if (write(ends[1], input.data + at, length) != (ssize_t)length || read_frames(&channel))
            return 1;
        while (next_frame(&channel, &handled, &frame)) {
            printf("%d %d %u ", frame.type, frame.session, frame.length);
            for (uint32_t i = 0; i < frame.length; i++)
                printf("%02x", (unsigned char)frame.data[i]);
            printf("\n");
        }
        drop_frames(&channel, handled);
    }
    return 0;
}

static int say_place(const char *root, const char *path, const char *kind) {
    char link[64], real[4096];
    int fd = open(root, O_PATH | O_CLOEXEC), place = open_inside(fd, path, *kind == 'f' ? MAKE_FILE : MAKE_DIRECTORY);
    if (place < 0) {
        printf("error: %m\n");
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", place);
    ssize_t length = readlink(link, real, sizeof real - 1);
    real[length < 0 ? 0 : length] = 0;
    printf("%s\n", real);
    return 0;
}

static int say_escaped(const char *text, size_t room) {
    char line[4096] = "";
    escape(text, line, room < sizeof line ? room : sizeof line);
    printf("%s", line);
    return 0;
}

/* What both sides of the channel have to agree on. */
static int say_format(void) {
#define AS_LINE(name, number) printf("%s %d\n", #name, number);
    MESSAGES(AS_LINE)
    printf("version %d\nheader %d\nwindow %d\nframe-max %d\n", VERSION, HEADER, WINDOW, FRAME_MAX);
    printf("powered-off %d\nhalted %d\nrebooted %d\nrebooted-status %d\n", POWERED_OFF, HALTED, REBOOTED, REBOOTED_STATUS);
#define AS_FIELD(of, field) printf(#of "." #field " %zu %zu\n", offsetof(struct of, field), sizeof ((struct of *)0)->field);
    AS_FIELD(head, kind) AS_FIELD(head, zero) AS_FIELD(head, name) AS_FIELD(head, target) AS_FIELD(head, mode)
    AS_FIELD(head, time) AS_FIELD(head, size) AS_FIELD(extent, offset) AS_FIELD(extent, length)
    printf("head %zu\nextent %zu\n", sizeof(struct head), sizeof(struct extent));
    printf("name-most %d\npart-most %d\nextents-most %d\npiece-most %d\n", NAME_MOST, PART_MOST, EXTENTS_MOST, PIECE_MOST);
    printf("file-most %llu\ntail-failed %u\nhello %s", (unsigned long long)FILE_MOST, TAIL_FAILED, HELLO);
    return 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "user"))
        for (int i = 2; i < argc; i++)
            say_user(argv[i]);
    else if (!strcmp(what, "signal"))
        for (int i = 2; i < argc; i++)
            printf("%d\n", parse_signal(argv[i]));
    else if (!strcmp(what, "first"))
        for (int i = 2; i < argc; i++)
            printf("%d\n", wants_to_be_first(argv[i]));
    else if (!strcmp(what, "records"))
        return say_records();
    else if (!strcmp(what, "environment"))
        return say_environment();
    else if (!strcmp(what, "frames") && argc == 3)
        return say_frames(atoi(argv[2]));
    else if (!strcmp(what, "place") && argc == 5)
        return say_place(argv[2], argv[3], argv[4]);
    else if (!strcmp(what, "escape") && argc == 4)
        return say_escaped(argv[3], atoi(argv[2]));
    else if (!strcmp(what, "format"))
        return say_format();
    else
        return 2;
    return 0;
}
