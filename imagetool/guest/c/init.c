/* The guest's init: PID 1 in the initramfs, then on the disk. From here the way of a boot can be read; docs/layout-1.md. */
#include "init.h"
#include "copy.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <signal.h>

int debug, channel = -1;
struct records process, slot;

static char *cmdline;
static char slot_digest[65];
static const char *root_device = "/dev/vda", *root_flags = "";

static void talk(int type, const char *format, va_list arguments) {
    char text[512];
    int length = vsnprintf(text, sizeof text, format, arguments);
    if (length >= (int)sizeof text)
        length = sizeof text - 1;
    dprintf(2, "rootdisk: %s\n", text);
    if (channel >= 0)
        send_frame(type, 0, text, length);
}

void note(const char *format, ...) {
    va_list arguments;
    if (!debug)
        return;
    va_start(arguments, format);
    talk(LOG, format, arguments);
    va_end(arguments);
}

void die(const char *format, ...) {
    va_list arguments;
    if (channel < 0)
        channel = find_port(1);
    va_start(arguments, format);
    talk(ERROR, format, arguments);
    va_end(arguments);
    power_off();
}

double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Ends every program, writes everything back, leaves the disk clean and the machine off. */
void power_off(void) {
    if (getpid() != 1)
        _exit(125);
    if (!kill(-1, SIGTERM)) {
        double deadline = now() + 0.5;
        while ((waitpid(-1, NULL, WNOHANG) >= 0 || errno != ECHILD) && now() < deadline)
            usleep(2000);
        kill(-1, SIGKILL);
        while (waitpid(-1, NULL, 0) > 0)
            ;
    }
    sync();
    umount2("/tmp", MNT_DETACH);
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL))
        dprintf(2, "rootdisk: the disk could not be made read-only: %s\n", strerror(errno));
    sync();
    reboot(RB_AUTOBOOT); /* the machine ends on a reboot */
    for (;;)
        pause();
}

/* Of /modules/load the lines without a key; later those whose record the slot has. */
void load_modules(int first) {
    size_t length;
    char *list = read_file("/modules/load", &length), *save, path[256];
    if (!list)
        return;
    for (char *line = strtok_r(list, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *key = strchr(line, ' ');
        if (key)
            *key++ = 0;
        if (first ? !!key : !key || !find_record(&slot, key))
            continue;
        snprintf(path, sizeof path, "/modules/%s", line);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            dprintf(2, "rootdisk: module %s: %s\n", line, strerror(errno));
        close(fd);
        unlink(path);
    }
    free(list);
}

static void read_cmdline(void) {
    size_t length;
    char *save;
    cmdline = read_file("/proc/cmdline", &length);
    /* libkrun sets what it adds in quotes */
    for (char *word = strtok_r(cmdline, " \n\"", &save); word; word = strtok_r(NULL, " \n\"", &save)) {
        if (!strncmp(word, "rootdisk.slot=", 14))
            snprintf(slot_digest, sizeof slot_digest, "%s", word + 14);
        else if (!strncmp(word, "rootdisk.root=", 14))
            root_device = word + 14;
        else if (!strncmp(word, "rootdisk.rootflags=", 19))
            root_flags = word + 19;
        else if (!strcmp(word, "rootdisk.debug=1"))
            debug = 1;
    }
}

static void mount_root(void) {
    double deadline = now() + 10;
    mkdir("/root", 0755);
    while (mount(root_device, "/root", "ext4", MS_NOATIME, root_flags)) {
        if ((errno != ENOENT && errno != ENXIO) || now() > deadline)
            die("cannot mount %s: %s%s", root_device, strerror(errno),
                errno == ENOENT ? " (no such disk: is virtio_blk in the kernel, and the disk attached?)" : "");
        usleep(1000);
    }
}

/* The slot's records, once its bytes are those the runner named. */
static void read_slot(const char *path) {
    char found[65], head[16], *data = NULL;
    uint32_t payload = 0;
    if (!*slot_digest)
        return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (read(fd, head, sizeof head) == sizeof head && !memcmp(head, "RDSLOT1", 8)) {
        memcpy(&payload, head + 8, 4);
        data = payload <= SLOT_MAX ? malloc(16 + payload) : NULL;
    }
    if (!data || pread(fd, data, 16 + payload, 0) != 16 + (ssize_t)payload)
        die("the slot of this sandbox is damaged: start it again");
    close(fd);
    sha256_hex(data, 16 + payload, found);
    if (strcmp(found, slot_digest))
        die("the slot holds other bytes than the runner wrote: start the sandbox again");
    slot = (struct records){data + 16, payload};
}

/* A writable view of a disk that is not written: an overlay whose upper layer is memory, mounted in `room`. */
static const char *overlay_root(const char *disk, const char *room) {
    static char root[64];
    char data[64], work[64], options[256];
    snprintf(root, sizeof root, "%s/root", room);
    snprintf(data, sizeof data, "%s/data", room);
    snprintf(work, sizeof work, "%s/work", room);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", disk, data, work);
    mkdir(room, 0755);
    if (mount(NULL, disk, NULL, MS_REMOUNT | MS_RDONLY, NULL) || mount("tmpfs", room, "tmpfs", 0, "mode=0755") ||
        mkdir(root, 0755) || mkdir(data, 0755) || mkdir(work, 0755) || mount("overlay", root, "overlay", 0, options))
        die("cannot put an overlay over the read-only root: %s", strerror(errno));
    return root;
}

/* Makes what is mounted at `root` the root; /dev, /proc and /sys go along, as unmounting takes longer. */
static void enter(const char *root) {
    static const char *const places[] = {"/dev", "/proc", "/sys"};
    if (chdir(root))
        die("cannot change to the disk: %s", strerror(errno));
    for (int i = 0; i < 3; i++) {
        const char *to = places[i] + 1;
        if (mount(places[i], to, NULL, MS_MOVE, NULL) && (mkdir(to, 0755), mount(places[i], to, NULL, MS_MOVE, NULL)))
            die("cannot move %s into the disk: %s", places[i], strerror(errno));
    }
    if (mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        die("cannot change to the disk: %s", strerror(errno));
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--version")) {
        puts("rootdisk init, layout 1");
        return 0;
    }
    if (argc == 3 && (!strcmp(argv[1], "pack") || !strcmp(argv[1], "pack2")))
        return pack(argv[1][4] ? 2 : 1, argv[2], 0);
    if (argc == 4 && !strcmp(argv[1], "pack2") && !strcmp(argv[2], "-L"))
        return pack(2, argv[3], 1);
    if (argc == 4 && (!strcmp(argv[1], "unpack") || !strcmp(argv[1], "unpack2")))
        return unpack(argv[1][6] ? 2 : 1, argv[2], argv[3]);
    if (getpid() != 1) {
        fputs("rootdisk: init runs as process 1 of a virtual machine\n", stderr);
        return 125;
    }
    umask(022);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; console >= 0 && fd < 3; fd++)
        dup2(console, fd);
    read_cmdline();
    int early = access("/.rootdisk/init", F_OK); /* else the disk is the root already, as libkrun's init has it */
    if (early)
        load_modules(1);
    if (early) {
        mount_root();
        read_slot("/root/.rootdisk/slot");
        load_modules(0);
        unlink("/init");
        enter(find_record(&slot, "read-only") ? overlay_root("/root", "/upper") : "/root");
    } else {
        read_slot("/.rootdisk/slot");
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL); /* what is shared cannot be moved */
        if (find_record(&slot, "read-only"))
            enter(overlay_root("/", "/.rootdisk"));
    }
    channel = find_port(3); /* which has come by now */
    process.data = read_file("/.rootdisk/process", &process.length);
    if (!process.data)
        die("the disk has no /.rootdisk/process: it was built with --plain");
    mount_all();
    configure();
    mount_volumes();
    renew_host_keys();
    struct program program = {0};
    main_program(&program);
    serve(&program);
}
