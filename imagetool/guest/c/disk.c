/* From the initramfs onto the disk: modules, the root, the slot. */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SLOT_MOST = 1 << 24, LIST_MOST = 1 << 20, SLOT_HEADER = 16 };

/* Whether QEMU emulates the processor: its vector instructions are then slower than plain ones. */
static int is_emulated(void) {
    char text[1024] = "";
    int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0)
        close(fd);
    return length > 0 && strstr(text, "QEMU TCG CPU");
}

static int is_without_network(const struct records *slot) {
    const char *mode = find_record(slot, "network");
    return mode && !strcmp(mode, "none");
}

static int is_loaded_now(enum stage stage, const char *key, const struct guest *guest) {
    if (!key || stage == EARLY)
        return !key && stage == EARLY;
    if (!strcmp(key, "late"))
        return stage == LATE;
    if (!strcmp(key, "verity") || !strcmp(key, "verity-cpu"))
        return stage == FOR_VERITY && guest->verity && (!key[6] || !is_emulated());
    if (!strcmp(key, "network")) /* of a template it is not known whether they are needed */
        return stage == (guest->is_template ? LATE : BY_SLOT) && !is_without_network(&guest->slot);
    return stage == BY_SLOT && (find_record(&guest->slot, key) || (!strcmp(key, "mount") && find_record(&guest->slot, "mount-file")));
}

/* Of /modules/load those of a stage: EARLY are the lines without a key, BY_SLOT those whose record the slot has. */
int load_modules(const struct guest *guest, enum stage stage, struct why *why) {
    size_t length;
    char *list = read_file("/modules/load", LIST_MOST, &length), *save, path[256];
    if (!list)
        return errno == ENOENT ? 0 : explain(why, "/modules/load: %s", strerror(errno));
    for (char *line = strtok_r(list, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *key = strchr(line, ' ');
        if (key)
            *key++ = 0;
        if (!is_loaded_now(stage, key, guest))
            continue;
        snprintf(path, sizeof path, "/modules/%s", line);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        /* What is missing for want of a module says so itself, and better. */
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            report("module %s: %s", line, strerror(errno));
        if (fd >= 0)
            close(fd);
        unlink(path);
    }
    free(list);
    return 0;
}

static int mount_root(const struct guest *guest, struct why *why) {
    const char *device = guest->verity ? set_up_verity(guest->verity, guest->root_device, why) : guest->root_device;
    double deadline = now() + 10;
    char options[1024];
    if (!device)
        return -1;
    /* What files free is given back to the host, if the disk can do that; flags on the command line come last, so they win. */
    const char *discard = guest->verity ? "" : *guest->root_flags ? "discard," : "discard";
    if (snprintf(options, sizeof options, "%s%s", discard, guest->root_flags) >= (int)sizeof options)
        return explain(why, "rootdisk.rootflags is too long");
    mkdir("/root", 0755);
    /* The kernel says a line for each try without a device; they would hide why there is none. */
    while (access(device, F_OK) && now() <= deadline)
        usleep(1000);
    while (mount(device, "/root", "ext4", MS_NOATIME | (guest->verity ? MS_RDONLY : 0), options)) {
        if ((errno != ENOENT && errno != ENXIO) || now() > deadline)
            return explain(why, "cannot mount %.200s: %s%s", device, strerror(errno),
                           errno == ENOENT ? " (no such disk: is virtio_blk in the kernel, and the disk attached?)" : "");
        usleep(1000);
    }
    return 0;
}

/* The slot's records, if its bytes are those that the runner named. */
static int read_slot(struct guest *guest, const char *path, struct why *why) {
    char digest[65], head[SLOT_HEADER], *data = NULL;
    uint32_t payload = 0;
    ssize_t count = -1;
    if (!*guest->slot_digest)
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, head, sizeof head) == sizeof head && !memcmp(head, "RDSLOT1", 8)) {
        memcpy(&payload, head + 8, 4);
        data = payload <= SLOT_MOST ? malloc(SLOT_HEADER + payload) : NULL;
    }
    if (data)
        count = pread(fd, data, SLOT_HEADER + payload, 0);
    if (fd >= 0)
        close(fd);
    if (!data || count != SLOT_HEADER + (ssize_t)payload) {
        free(data);
        return explain(why, "the slot of this sandbox is damaged: start it again");
    }
    sha256_hex(data, SLOT_HEADER + payload, digest);
    if (strcmp(digest, guest->slot_digest)) {
        free(data);
        return explain(why, "the slot holds other bytes than the runner wrote: start the sandbox again");
    }
    guest->slot = (struct records){data + SLOT_HEADER, payload};
    return 0;
}

/* A writable view of a disk that is not written: an overlay whose upper layer is memory, mounted in `room`. NULL and why. */
static const char *overlay_root(const char *disk, const char *room, struct why *why) {
    static char root[64];
    char data[64], work[64], options[256];
    snprintf(root, sizeof root, "%s/root", room);
    snprintf(data, sizeof data, "%s/data", room);
    snprintf(work, sizeof work, "%s/work", room);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", disk, data, work);
    mkdir(room, 0755);
    if (mount(NULL, disk, NULL, MS_REMOUNT | MS_RDONLY, NULL) || mount("tmpfs", room, "tmpfs", 0, "mode=0755") ||
        mkdir(root, 0755) || mkdir(data, 0755) || mkdir(work, 0755) || mount("overlay", root, "overlay", 0, options)) {
        explain(why, "cannot put an overlay over the read-only root: %s", strerror(errno));
        return NULL;
    }
    return root;
}

/* Makes what is mounted at `root` the root; /dev, /proc and /sys go along, as unmounting takes longer. */
static int enter(const char *root, struct why *why) {
    static const char *const places[] = {"/dev", "/proc", "/sys"};
    int fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC), failed = 0;
    for (int i = 0; fd >= 0 && i < 3 && !failed; i++) {
        int place = open_inside(fd, places[i], MAKE_DIRECTORY);
        failed = place < 0 || mount_at(place, places[i], NULL, MS_MOVE, NULL);
        if (failed)
            explain(why, "cannot move %s into the disk: %s", places[i], strerror(errno));
        if (place >= 0)
            close(place);
    }
    if (!failed && (fd < 0 || fchdir(fd) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/")))
        failed = explain(why, "cannot change to the disk: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    return failed;
}

int enter_disk(struct guest *guest, struct why *why) {
    const char *root = "/root";
    if (access("/.rootdisk/init", F_OK)) {
        int has_verity = guest->is_template && guest->verity; /* loaded before the template was saved */
        if (load_modules(guest, EARLY, why) || (guest->is_template ? be_template(guest, why) : load_modules(guest, LATE, why)) ||
            (!has_verity && load_modules(guest, FOR_VERITY, why)) || mount_root(guest, why) ||
            read_slot(guest, "/root/.rootdisk/slot", why) || load_modules(guest, BY_SLOT, why))
            return -1;
        unlink("/init");
        if (find_record(&guest->slot, "read-only") && !(root = overlay_root("/root", "/upper", why)))
            return -1;
        if (guest->channel.fd < 0 && !guest->channel.is_console)
            guest->channel.fd = find_port("rootdisk", 0); /* while /sys is where it was: an error is told through it */
        return enter(root, why);
    }
    /* The disk is the root already, as libkrun's init has it. */
    if (read_slot(guest, "/.rootdisk/slot", why))
        return -1;
    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL); /* what is shared cannot be moved */
    if (!find_record(&guest->slot, "read-only"))
        return 0;
    root = overlay_root("/", "/.rootdisk", why);
    return root ? enter(root, why) : -1;
}
