/* Records, users and programs of the guest's init (process.c) on the host: for libFuzzer, or with files as arguments.

   An input is five parts, each ended by a byte 0x1e: the image's process records, the slot's, an EXEC's, /etc/passwd and
   /etc/group. Both files are the image's, so anything may be in them. What is allocated is freed between inputs: main_program()
   runs once in a guest and frees nothing. */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* malloc and others in process.c, remembered until the input's end. */
static void *blocks[1 << 16];
static size_t blocks_count;

static void *kept(void *block) {
    if (blocks_count == sizeof blocks / sizeof *blocks)
        abort();
    return blocks[blocks_count++] = block;
}

static void *fuzz_malloc(size_t size) { return kept(malloc(size)); }
static void *fuzz_calloc(size_t count, size_t size) { return kept(calloc(count, size)); }
static char *fuzz_strdup(const char *text) { return kept(strdup(text)); }

static void fuzz_free(void *block) {
    for (size_t i = blocks_count; block && i--;)
        if (blocks[i] == block) {
            blocks[i] = blocks[--blocks_count];
            break;
        }
    free(block);
}

static void *fuzz_realloc(void *block, size_t size) {
    void *larger = fuzz_malloc(size);
    if (block) {
        size_t before = malloc_usable_size(block);
        memcpy(larger, block, before < size ? before : size);
        fuzz_free(block);
    }
    return larger;
}

static int fuzz_open(const char *path, int flags, ...);
static int fuzz_mkdir(const char *path, mode_t mode) { return (void)path, (void)mode, 0; }

#define malloc fuzz_malloc
#define calloc fuzz_calloc
#define strdup fuzz_strdup
#define realloc fuzz_realloc
#define free fuzz_free
#define open fuzz_open
#define mkdir fuzz_mkdir
#include "process.c"
#undef malloc
#undef calloc
#undef strdup
#undef realloc
#undef free
#undef open
#undef mkdir

#define CHECK(condition) do { if (!(condition)) { fprintf(stderr, "%d: %s\n", __LINE__, #condition); abort(); } } while (0)
enum { PROCESS, SLOT, REQUEST, PASSWD, GROUP, PARTS };

int debug, channel = -1;
struct records process, slot;
static struct records parts[PARTS];
static jmp_buf died;

/* What the init says before it ends the machine: of an image that it cannot start, which is no fault. */
void die(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    longjmp(died, 1);
}

void note(const char *format, ...) { (void)format; }

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
    if (find_user(text, &user))
        return;
    CHECK(user.count >= 0 && user.count <= GROUPS && strlen(user.home) < sizeof user.home);
}

static void try_all(void) {
    struct program program = {.user = "", .workdir = "/"}, other;
    const char *key, *value;
    for (size_t at = 0; (value = next_record(&parts[REQUEST], &at, &key));) {
        CHECK(strlen(key) < 64 && at <= parts[REQUEST].length);
        if (!strcmp(key, "user"))
            try_user(value);
        if (!strcmp(key, "workdir"))
            make_directories(value);
    }
    try_user("app:staff");
    process = parts[PROCESS];
    slot = parts[SLOT];
    main_program(&program);
    CHECK(program.argv && *program.argv && program.env);
    look_at(program.argv);
    look_at(program.env);
    for (char **item = program.env; *item; item++) /* of every name one */
        for (char **next = item + 1; *next; next++)
            CHECK(strcspn(*item, "=") != strcspn(*next, "=") || strncmp(*item, *next, strcspn(*item, "=")));
    other = program;
    exec_program(&other, &parts[REQUEST]);
    look_at(other.argv);
    look_at(other.env);
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
    if (!setjmp(died))
        try_all();
    while (blocks_count)
        free(blocks[--blocks_count]);
    for (int i = 0; i < PARTS; i++)
        free(parts[i].data);
    return 0;
}

#include "main.h"
