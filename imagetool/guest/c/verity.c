/* The disk behind dm-verity: what is read of it is checked with the tree on a second disk. The slot, which the runner has
   written, is read past it, from the disk itself. Documentation/admin-guide/device-mapper/{dm-ioctl,verity,linear}. */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* include/uapi/linux/dm-ioctl.h, which musl has not */
struct dm_ioctl {
    uint32_t version[3], data_size, data_start, target_count;
    int32_t open_count;
    uint32_t flags, event_nr, padding;
    uint64_t dev;
    char name[128], uuid[129], data[7];
};
struct dm_target_spec {
    uint64_t sector_start, length;
    int32_t status;
    uint32_t next;
    char target_type[16];
};
enum { DM_READONLY_FLAG = 1, DM_DEV_CREATE = 3, DM_DEV_SUSPEND = 6, DM_TABLE_LOAD = 9 };

enum { BLOCK_SECTORS = 8, TARGETS_MOST = 3, PARAMETERS_MOST = 512 };

struct target {
    const char *type;
    uint64_t start, length; /* sectors */
    char parameters[PARAMETERS_MOST];
};

struct request {
    struct dm_ioctl head;
    char targets[TARGETS_MOST * (sizeof(struct dm_target_spec) + PARAMETERS_MOST)];
};

/* With DM_DEV_SUSPEND and no flag a device is resumed. */
static int ask(int control, int command, const char *name, struct request *request, uint32_t flags) {
    request->head.version[0] = 4;
    request->head.data_size = sizeof *request;
    request->head.data_start = sizeof request->head;
    request->head.flags = flags;
    snprintf(request->head.name, sizeof request->head.name, "%s", name);
    return ioctl(control, _IOWR(0xfd, command, struct dm_ioctl), request);
}

/* Makes a read-only device of `targets`. 0, and its number in /dev/dm-NUMBER. */
static int make_device(int control, const char *name, const struct target *targets, int count, unsigned *number) {
    static struct request request; /* zeros */
    char *at = request.targets;
    memset(&request, 0, sizeof request);
    if (ask(control, DM_DEV_CREATE, name, &request, 0))
        return -1;
    *number = (request.head.dev & 0xff) | ((request.head.dev >> 12) & ~0xffu);
    memset(&request, 0, sizeof request);
    request.head.target_count = count;
    for (int i = 0; i < count; i++) {
        struct dm_target_spec spec = {targets[i].start, targets[i].length, 0, sizeof spec + PARAMETERS_MOST, ""};
        snprintf(spec.target_type, sizeof spec.target_type, "%s", targets[i].type);
        memcpy(at, &spec, sizeof spec);
        memcpy(at + sizeof spec, targets[i].parameters, PARAMETERS_MOST);
        at += sizeof spec + PARAMETERS_MOST;
    }
    if (ask(control, DM_TABLE_LOAD, name, &request, DM_READONLY_FLAG))
        return -1;
    memset(&request, 0, sizeof request);
    return ask(control, DM_DEV_SUSPEND, name, &request, DM_READONLY_FLAG);
}

/* The disk with our serial number, or NULL if none has come yet. */
static const char *find_tree(void) {
    static char device[] = "/dev/vda";
    char path[64], serial[32];
    for (char letter = 'a'; letter <= 'z'; letter++) {
        snprintf(path, sizeof path, "/sys/block/vd%c/serial", letter);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t length = fd >= 0 ? read(fd, serial, sizeof serial) : -1;
        if (fd >= 0)
            close(fd);
        if (length >= 15 && !memcmp(serial, "rootdisk-verity", 15)) {
            device[7] = letter;
            return device;
        }
    }
    return NULL;
}

static int is_hex(const char *text) { return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64; }

/* ROOT HASH:SALT:DATA BLOCKS:FIRST SECTOR OF THE SLOT:ITS SECTORS. The device to mount, or NULL and why. */
const char *set_up_verity(char *spec, const char *disk, struct why *why) {
    static char root[32];
    char *save, *words[5] = {0}, *end = "";
    uint64_t numbers[3] = {0}; /* data blocks; slot: first sector, sectors */
    int count = 0, good;
    for (char *word = strtok_r(spec, ":", &save); word && count < 5; word = strtok_r(NULL, ":", &save))
        words[count++] = word;
    good = count == 5 && is_hex(words[0]) && is_hex(words[1]);
    for (int i = 0; good && i < 3; i++) {
        numbers[i] = strtoull(words[2 + i], &end, 10);
        good = !*end && numbers[i] && numbers[i] < 1ull << 40;
    }
    uint64_t sectors = numbers[0] * BLOCK_SECTORS, first = numbers[1], after = numbers[1] + numbers[2];
    if (!good || after >= sectors) {
        explain(why, "the runner's word about dm-verity is damaged");
        return NULL;
    }
    const char *tree = NULL;
    for (double deadline = now() + 10; !(tree = find_tree()) || access(disk, F_OK); usleep(1000))
        if (now() > deadline) {
            explain(why, "the disk with the dm-verity tree is not attached");
            return NULL;
        }
    unsigned verity = 0, whole = 0;
    static struct target checked, parts[3];
    checked = (struct target){"verity", 0, sectors, ""};
    snprintf(checked.parameters, PARAMETERS_MOST, "1 %s %s 4096 4096 %s 1 sha256 %s %s 1 ignore_zero_blocks", disk, tree, words[2],
             words[0], words[1]);
    int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
    int failed = control < 0 || make_device(control, "verity", &checked, 1, &verity);
    if (!failed) {
        parts[0] = (struct target){"linear", 0, first, ""};
        parts[1] = (struct target){"linear", first, after - first, ""};
        parts[2] = (struct target){"linear", after, sectors - after, ""};
        snprintf(parts[0].parameters, PARAMETERS_MOST, "/dev/dm-%u 0", verity);
        snprintf(parts[1].parameters, PARAMETERS_MOST, "%s %llu", disk, (unsigned long long)first);
        snprintf(parts[2].parameters, PARAMETERS_MOST, "/dev/dm-%u %llu", verity, (unsigned long long)after);
        failed = make_device(control, "root", parts, 3, &whole);
    }
    if (failed)
        explain(why, "cannot set up dm-verity: %s (is it in the kernel?)", strerror(errno));
    if (control >= 0)
        close(control);
    snprintf(root, sizeof root, "/dev/dm-%u", whole);
    return failed ? NULL : root;
}
