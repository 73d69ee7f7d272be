/* A libkrun for tests: writes every call with its arguments to LIBRARY.calls, fails where LIBRARY.fail says so
   ("NAME ERRNO"), and in place of a guest plays what LIBRARY.guest says:
   panic: the console says so and the machine ends; sleep: the program goes on; hang: it never starts; eat: it goes on and takes all memory;
   status: it ends with status 7;
   version-2: the same, of an init that knows less. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char console[256];
static int channel = -1;
static uid_t user;
static gid_t group;

static FILE *beside(const char *suffix, const char *mode) {
    Dl_info info;
    char path[4096];
    dladdr((void *)beside, &info);
    snprintf(path, sizeof path, "%s.%s", info.dli_fname, suffix);
    return fopen(path, mode);
}

static int32_t said(const char *name, const char *format, ...) {
    va_list arguments;
    char wanted[128];
    int error = 0;
    FILE *calls = beside("calls", "a"), *fail = beside("fail", "r");
    va_start(arguments, format);
    fprintf(calls, "%s", name);
    vfprintf(calls, format, arguments);
    fprintf(calls, "\n");
    fclose(calls);
    va_end(arguments);
    if (fail && fscanf(fail, "%127s %d", wanted, &error) == 2 && strcmp(wanted, name))
        error = 0;
    if (fail)
        fclose(fail);
    return -error;
}

static const char *list(const char *const *items, char *out) {
    *out = 0;
    for (; items && *items; items++)
        strcat(strcat(out, " "), *items);
    return out;
}

int32_t krun_set_log_level(uint32_t level) { return said(__func__, " %u", level); }
int32_t krun_create_ctx(void) { int32_t r = said(__func__, ""); return r ? r : 5; }
int32_t krun_set_vm_config(uint32_t ctx, uint8_t cpus, uint32_t mib) { return said(__func__, " %u %u %u", ctx, cpus, mib); }
int32_t krun_add_disk3(uint32_t ctx, const char *id, const char *path, uint32_t format, _Bool ro, _Bool direct, uint32_t sync) {
    int fd = open(path, O_RDWR); /* as the real one does before it becomes another user */
    if (fd < 0)
        return -errno;
    close(fd);
    return said(__func__, " %u %s %s %u %d %d %u", ctx, id, strrchr(path, '/') + 1, format, ro, direct, sync);
}
int32_t krun_set_root_disk_remount(uint32_t ctx, const char *device, const char *type, const char *options) {
    return said(__func__, " %u %s %s %s", ctx, device, type, options ? options : "NULL");
}
int32_t krun_set_console_output(uint32_t ctx, const char *path) {
    snprintf(console, sizeof console, "%s", path);
    return said(__func__, " %u", ctx);
}
int32_t krun_add_virtio_console_multiport(uint32_t ctx) { int32_t r = said(__func__, " %u", ctx); return r ? r : 3; }
int32_t krun_add_console_port_inout(uint32_t ctx, uint32_t port, const char *name, int in, int out) {
    struct stat info;
    if (!strcmp(name, "rootdisk"))
        channel = in;
    return said(__func__, " %u %u %s %d %d", ctx, port, name, in == out, !fstat(in, &info) && S_ISSOCK(info.st_mode));
}
int32_t krun_disable_implicit_vsock(uint32_t ctx) { return said(__func__, " %u", ctx); }
int32_t krun_add_net_unixstream(uint32_t ctx, const char *path, int fd, uint8_t *mac, uint32_t features, uint32_t flags) {
    struct stat info;
    return said(__func__, " %u %s %d %02x:%02x %u %u", ctx, path ? path : "NULL", !fstat(fd, &info) && S_ISSOCK(info.st_mode),
                mac[0], mac[5], features, flags);
}
int32_t krun_add_virtiofs(uint32_t ctx, const char *tag, const char *path) { return said(__func__, " %u %s %s", ctx, tag, path); }
int32_t krun_add_virtiofs3(uint32_t ctx, const char *tag, const char *path, uint64_t shm, _Bool ro) {
    return said(__func__, " %u %s %s %lu %d", ctx, tag, path, (unsigned long)shm, ro);
}
int32_t krun_set_exec(uint32_t ctx, const char *path, const char *const argv[], const char *const env[]) {
    char arguments[4096], variables[4096];
    return said(__func__, " %u %s:%s:%s", ctx, path, list(argv, arguments), list(env, variables));
}
int32_t krun_setgid(uint32_t ctx, gid_t gid) { return said(__func__, " %u %u", ctx, group = gid); }
int32_t krun_setuid(uint32_t ctx, uid_t uid) { return said(__func__, " %u %u", ctx, user = uid); }

static void frame(int type, const void *data, uint32_t length) {
    char head[8] = {0};
    memcpy(head, &length, 4);
    head[4] = type;
    if (write(channel, head, 8) < 0 || write(channel, data, length) < 0)
        _exit(3);
}

static int read_all(char *data, size_t length) {
    struct pollfd ready = {channel, POLLIN, 0};
    for (ssize_t count; length; data += count, length -= count)
        if (poll(&ready, 1, -1) < 0 || (count = read(channel, data, length)) <= 0)
            return 0;
    return 1;
}

int32_t krun_start_enter(uint32_t ctx) {
    char wanted[32] = "status", head[8], data[4096];
    FILE *guest;
    int32_t result = said(__func__, " %u", ctx);
    if (result)
        return result;
    if ((guest = beside("guest", "r")) && fscanf(guest, "%31s", wanted) < 1)
        _exit(4);
    if (user && (setresgid(group, group, group) || setresuid(user, user, user)))
        return -errno;
    int out = open(console, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (out < 0)
        return -errno;
    dprintf(out, "the guest's kernel\n");
    if (!strcmp(wanted, "panic")) {
        dprintf(out, "Kernel panic - not syncing: a test\n");
        _exit(0);
    }
    while (!strcmp(wanted, "hang"))
        pause();
    frame(1, strcmp(wanted, "version-2") ? "\3\0\0\0" : "\2\0\0\0", 4); /* READY */
    frame(2, "from the guest\n", 15);     /* STDOUT */
    if (!strcmp(wanted, "sleep"))
        for (;;)
            pause();
    if (!strcmp(wanted, "eat"))
        for (char *piece; (piece = malloc(1 << 20));)
            memset(piece, 1, 1 << 20);
    frame(4, "\7\0\0\0", 4);              /* EXIT */
    for (uint32_t length; read_all(head, 8) && memcpy(&length, head, 4) && length <= sizeof data && read_all(data, length);)
        if (head[4] == 20) /* ACK: power off */
            break;
    _exit(0);
}
