/* Records, users and programs of the guest's init on the host: for libFuzzer, or with files as arguments.

   An input is five parts, each ended by a byte 0x1e: the image's process records, the slot's, an EXEC's, /etc/passwd and
   /etc/group. Both files are the image's, so anything may be in them. What main_program() reads stays in a guest; here it is
   freed between inputs. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* What read_file() has given, remembered until the input's end: a program's texts point into it. */
static void *blocks[1 << 10];
static size_t blocks_count;

static int fuzz_open(const char *path, int flags, ...);
#define open fuzz_open
#include "files.c"
#undef open
static char *fuzz_read_file(const char *path, size_t most, size_t *length);
#include "users.h"
#include "records.c"
#include "users.c"
#include "signals.c"
#define read_file fuzz_read_file
#include "program.c"
#undef read_file

#define CHECK(condition) do { if (!(condition)) { fprintf(stderr, "%d: %s\n", __LINE__, #condition); abort(); } } while (0)
enum { PROCESS, SLOT, REQUEST, PASSWD, GROUP, PARTS };

static struct records parts[PARTS];

int explain(struct why *why, const char *format, ...) {
    char text[sizeof why->text];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(why->text, text, sizeof text);
    return -1;
}

static char *fuzz_read_file(const char *path, size_t most, size_t *length) {
    char *data = read_file(path, most, length);
    CHECK(blocks_count < sizeof blocks / sizeof *blocks);
    return blocks[blocks_count++] = data;
}

static int fuzz_open(const char *path, int flags, ...) {
    (void)flags;
    int part = !strcmp(path, "/etc/passwd") ? PASSWD : !strcmp(path, "/etc/group") ? GROUP : -1;
    int fd = part < 0 ? -1 : memfd_create("fuzz", MFD_CLOEXEC);
    if (fd >= 0 && (write(fd, parts[part].data, parts[part].length) < 0 || lseek(fd, 0, SEEK_SET)))
        abort();
    return fd;
}

static void look_at(char **list) {
    for (; list && *list; list++)
        CHECK(strlen(*list) < 1 << 20);
}

static void try_user(const char *text) {
    struct user user;
    struct why why = {""};
    if (find_user(text, &user, &why)) {
        CHECK(*why.text && !user.groups);
        return;
    }
    CHECK(user.uid <= ID_MOST && user.gid <= ID_MOST && user.count <= GROUPS_MOST && strlen(user.home) < sizeof user.home);
    for (size_t i = 0; i < user.count; i++)
        CHECK(user.groups[i] <= ID_MOST);
    forget_user(&user);
}

static void try_all(void) {
    struct program program = {0}, other = {0};
    struct why why = {""};
    struct limit limit;
    const char *key, *value;
    for (size_t at = 0; (value = next_record(&parts[REQUEST], &at, &key));) {
        CHECK(strlen(key) < 64 && at <= parts[REQUEST].length);
        int number = parse_signal(value);
        CHECK(number >= 0 && number <= SIGNAL_MOST);
        parse_limit(value, &limit, &why);
        wants_to_be_first(value);
        if (!strcmp(key, "user"))
            try_user(value);
    }
    try_user("app:staff");
    if (!main_program(&program, &parts[PROCESS], &parts[SLOT], &why)) {
        CHECK(program.argv.count && program.argv.items[0] && program.stop_signal > 0 && program.limit_count <= LIMITS_MOST);
        look_at(program.argv.items);
        look_at(program.env.items);
        for (size_t i = 0; i < program.env.count; i++) /* of every name one */
            for (size_t j = i + 1; j < program.env.count; j++) {
                const char *one = program.env.items[i], *another = program.env.items[j];
                CHECK(strcspn(one, "=") != strcspn(another, "=") || strncmp(one, another, strcspn(one, "=")));
            }
        if (!exec_program(&other, &program, &parts[REQUEST], &why))
            CHECK(other.argv.count && other.argv.items[0]);
        look_at(other.argv.items);
        look_at(other.env.items);
        forget_program(&other);
    } else {
        CHECK(*why.text);
    }
    forget_program(&program);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    for (int i = 0; i < PARTS; i++) {
        const uint8_t *end = length ? memchr(data, 0x1e, length) : NULL;
        size_t count = end && i < PARTS - 1 ? (size_t)(end - data) : length;
        parts[i] = (struct records){memcpy(calloc(1, count + 1), length ? data : (const uint8_t *)"", count), count};
        data += count, length -= count;
        if (length)
            data++, length--;
    }
    try_all();
    while (blocks_count)
        free(blocks[--blocks_count]);
    for (int i = 0; i < PARTS; i++)
        free(parts[i].data);
    return 0;
}

#include "main.h"
