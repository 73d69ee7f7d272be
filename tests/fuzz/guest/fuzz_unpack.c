/* The guest's end of `runner cp` into a sandbox (unpack.c) on the host: for libFuzzer, or with files as arguments.

   An input is a byte that says where the copy goes, and the stream. Only what lies below the target may change: its neighbours
   are looked at after each input. It writes real files in the directory where it is started; run it as a user who can do no
   harm elsewhere. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint8_t *coming;
static size_t coming_length;
static int is_begun;

static ssize_t fuzz_read(int fd, void *data, size_t length) {
    if (fd)
        return read(fd, data, length);
    if (length > coming_length)
        length = coming_length;
    memcpy(data, coming, length);
    coming += length, coming_length -= length;
    return length;
}

static ssize_t fuzz_write(int fd, const void *data, size_t length) { return fd > 2 ? write(fd, data, length) : (ssize_t)length; }
static int fuzz_dprintf(int fd, const char *format, ...) { return (void)fd, (void)format, 0; }
typedef void handler(int);
static handler *fuzz_signal(int number, handler *what) { return (void)number, what; }

#define read fuzz_read
#define write fuzz_write
#define dprintf fuzz_dprintf
#define signal fuzz_signal
#include "unpack.c"
#undef read
#undef write
#undef dprintf
#undef signal

#define CHECK(condition) do { if (!(condition)) { fprintf(stderr, "%d: %s\n", __LINE__, #condition); abort(); } } while (0)
enum { NEIGHBOURS = 4 };

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *place) {
    (void)info, (void)kind, (void)place;
    return remove(path) && errno != ENOENT;
}

static void unlock_all(const char *path) { /* a directory of mode 0 cannot be emptied */
    struct stat info;
    if (!lstat(path, &info) && S_ISDIR(info.st_mode))
        chmod(path, 0700);
}

static int unlock_one(const char *path, const struct stat *info, int kind, struct FTW *place) {
    (void)info, (void)place;
    if (kind == FTW_D || kind == FTW_DNR)
        unlock_all(path);
    return 0;
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd));
}

static void prepare(void) {
    if (!access("place", F_OK)) {
        for (int i = 0; i < 3; i++)
            nftw("place", unlock_one, 16, FTW_PHYS);
        CHECK(!nftw("place", remove_one, 16, FTW_PHYS | FTW_DEPTH));
    }
    CHECK(!mkdir("place", 0700) && !mkdir("place/target", 0700) && !mkdir("place/target/x", 0700) && !mkdir("place/beside", 0700));
    put("place/target/file", "mine");
    put("place/beside/secret", "mine");
    put("place/outside", "mine");
    CHECK(!symlink("../beside", "place/target/out") && !symlink("../outside", "place/target/link"));
}

static void check(int file_is_named) {
    struct stat info;
    char text[8] = "";
    CHECK(!lstat("place/beside/secret", &info) && S_ISREG(info.st_mode) && info.st_size == 4 && info.st_nlink == 1);
    CHECK(!lstat("place/beside", &info) && (info.st_mode & 07777) == 0700 && info.st_nlink == 2);
    CHECK(!lstat("place/outside", &info));
    if (file_is_named)
        return;
    CHECK(S_ISREG(info.st_mode) && info.st_nlink == 1);
    int fd = open("place/outside", O_RDONLY | O_CLOEXEC);
    CHECK(read(fd, text, sizeof text) == 4 && !memcmp(text, "mine", 4));
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    static const char *const places[][2] = {
        {"place/target", "x"}, {"place/target", "."}, {"place/target/file", "y"}, {"place/target/new", "y"},
        {"place/target/link", "y"}, {"place/target", ""}, {"place/target/new/", "y"}, {"place/target", "new"},
    };
    if (!is_begun++)
        umask(077);
    if (!length)
        return 0;
    const char *const *chosen = places[*data & 7];
    prepare();
    coming = data + 1, coming_length = length - 1;
    failed = stopped = wants_directory = 0;
    depth = 0;
    *prefix = *full = 0;
    unpack(*data & 8 ? 1 : 2, chosen[0], chosen[1]);
    CHECK(depth < sizeof directories / sizeof *directories);
    if (base >= 0)
        close(base);
    base = -1;
    check((*data & 7) == 4);
    umask(077);
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC); /* all others have been closed */
    CHECK(fd < 64);
    close(fd);
    return 0;
}

#include "main.h"
