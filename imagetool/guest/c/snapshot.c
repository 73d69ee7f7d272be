/* A machine that runs and is saved: its programs and its file system stand still until it goes on, as the same sandbox or as
   another one. docs/layout-1.md, "Snapshots". */
#include "guest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define FREEZE_DISK _IOWR('X', 119, int) /* FIFREEZE and FITHAW of include/uapi/linux/fs.h, which musl has not */
#define THAW_DISK _IOWR('X', 120, int)
#define CGROUP2 0x63677270 /* include/uapi/linux/magic.h */
#define TOP "/sys/fs/cgroup"
#define OURS "rootdisk.paused"
#define HOOK "/.rootdisk/resumed"

enum { SMALL = 1 << 16, LIST_MOST = 1 << 20, PASSES = 100 };
static const double FREEZE_S = 5, HOOK_S = 10;

/* Writes a file of a cgroup; "" is the one at the top. */
static int put(const char *group, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, TOP "/%.255s/%s", group, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int failed = fd < 0 || write(fd, text, strlen(text)) < 0;
    if (fd >= 0)
        close(fd);
    return failed ? -1 : 0;
}

/* Reads a file of a cgroup; free it. */
static char *get(const char *group, const char *name, size_t most) {
    char path[512];
    size_t length;
    snprintf(path, sizeof path, TOP "/%.255s/%s", group, name);
    return read_file(path, most, &length);
}

/* The kernel's own threads have no program. They cannot be moved, and trying takes long. */
static int is_program(const char *pid) {
    char path[64], target[8];
    snprintf(path, sizeof path, "/proc/%.20s/exe", pid);
    return strcmp(pid, "1") && readlink(path, target, sizeof target) >= 0;
}

/* Moves every process of a cgroup but the init to another one. How many were moved. */
static int move_all(const char *from, const char *to) {
    char *list = get(from, "cgroup.procs", LIST_MOST), *save;
    int moved = 0;
    for (char *pid = list ? strtok_r(list, "\n", &save) : NULL; pid; pid = strtok_r(NULL, "\n", &save))
        moved += is_program(pid) && !put(to, "cgroup.procs", pid);
    free(list);
    return moved;
}

static int is_frozen(const char *group) {
    char *text = get(group, "cgroup.events", SMALL);
    int frozen = text && strstr(text, "frozen 1"); /* one that is gone has no processes */
    int is_gone = !text && errno == ENOENT;
    free(text);
    return frozen || is_gone;
}

/* Freezes each cgroup below the top that is not frozen yet, and adds its name to the list. */
static int freeze_groups(struct list *frozen) {
    DIR *directory = opendir(TOP);
    int failed = !directory;
    for (struct dirent *entry; !failed && directory && (entry = readdir(directory));) {
        if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
            continue;
        char *state = get(entry->d_name, "cgroup.freeze", SMALL), *name = NULL;
        if (state && *state == '0')
            failed = put(entry->d_name, "cgroup.freeze", "1") || !(name = strdup(entry->d_name)) || append(frozen, name);
        free(state);
    }
    if (directory)
        closedir(directory);
    return failed ? -1 : 0;
}

static void thaw_programs(struct list *frozen) {
    for (size_t i = 0; i < frozen->count; i++) {
        put(frozen->items[i], "cgroup.freeze", "0");
        free(frozen->items[i]);
    }
    free(frozen->items);
    *frozen = (struct list){0};
    move_all(OURS, "");
    rmdir(TOP "/" OURS);
}

/* By the kernel, so that no program notices: a signal would be seen by shells, and would wake what has been stopped on purpose. */
static int freeze_programs(struct list *frozen, struct why *why) {
    struct statfs info;
    double deadline = now() + FREEZE_S;
    if (statfs(TOP, &info) || info.f_type != CGROUP2 || (mkdir(TOP "/" OURS, 0755) && errno != EEXIST))
        return explain(why, "its programs cannot be frozen: no cgroup2 at " TOP);
    for (int pass = 0; pass < PASSES && move_all("", OURS); pass++)
        ; /* what a process starts meanwhile is moved too */
    if (freeze_groups(frozen))
        return explain(why, "its programs cannot be frozen: %s", strerror(errno));
    for (size_t i = 0; i < frozen->count; i++)
        while (!is_frozen(frozen->items[i])) {
            if (now() > deadline)
                return explain(why, "its programs do not stand still: one waits for a device");
            usleep(1000);
        }
    return 0;
}

/* 1 if it is frozen now, and 0 if it needs not be: the root in memory, or frozen by a program. */
static int freeze_disk(struct why *why) {
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int failed = fd < 0 || ioctl(fd, FREEZE_DISK, 0), error = errno;
    if (fd >= 0)
        close(fd);
    if (failed && error != EOPNOTSUPP && error != EBUSY)
        return explain(why, "its file system cannot be frozen: %s", strerror(error));
    return !failed;
}

static void thaw_disk(void) {
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        ioctl(fd, THAW_DISK, 0);
        close(fd);
    }
}

/* The image's own program for what has to be done again in each sandbox. The others stand still until it has ended, but not for ever. */
static void run_hook(const struct channel *channel, const struct program *base) {
    static char records[] = "cmd=" HOOK "\0user=0\0workdir=/";
    struct program program = {0};
    struct why why = {""};
    int fds[3], status = 0;
    pid_t pid = -1, ended = 0;
    if (access(HOOK, X_OK))
        return;
    if (!exec_program(&program, base, &(struct records){records, sizeof records}, &why))
        pid = spawn(&program, 0, fds, NULL, &why);
    forget_program(&program);
    for (double deadline = now() + HOOK_S; pid > 0 && !(ended = waitpid(pid, &status, WNOHANG)) && now() < deadline;)
        usleep(2000);
    if (pid < 0 || !ended || status)
        report(HOOK ": %s", pid < 0 ? why.text : ended ? "it failed" : "it takes long; the programs go on");
    note(channel->log, HOOK " has ended");
}

/* From PAUSED to the time. Sets *is_another. -1 and why if the machine must not go on. */
static int go_on(struct channel *channel, int is_disk_frozen, int *is_another, struct why *why) {
    struct records orders = {0}, time = {0};
    if (wait_for(channel, RESUME, &orders, why))
        return -1;
    if (is_disk_frozen)
        thaw_disk();
    *is_another = find_record(&orders, "entropy") != NULL;
    int failed = *is_another && become_another(&orders, why);
    explicit_bzero(orders.data, orders.length);
    free(orders.data);
    if (failed)
        return -1;
    double asked = now();
    send_frame(channel, RESUMED, 0, "", 0); /* the answer is the time of this moment */
    failed = wait_for(channel, TIME, &time, why) || take_time(&time, asked, why);
    free(time.data);
    return failed;
}

void stand_still(struct channel *channel, const struct program *program) {
    struct why why = {""};
    struct list frozen = {0};
    int is_another = 0, is_disk_frozen = 0;
    sync(); /* most of what the freezing of the disk waits for, while programs still run */
    if (!find_session(channel, 0))
        explain(&why, "its program has ended");
    else if (!freeze_programs(&frozen, &why))
        is_disk_frozen = freeze_disk(&why);
    if (*why.text) { /* this is said in place of an empty frame, and all goes on */
        thaw_programs(&frozen);
        send_frame(channel, PAUSED, 0, why.text, strlen(why.text));
        return;
    }
    send_frame(channel, PAUSED, 0, "", 0);
    if (go_on(channel, is_disk_frozen, &is_another, &why)) {
        report("%s", why.text);
        send_frame(channel, ERROR, 0, why.text, strlen(why.text));
        thaw_disk(); /* or the end would wait for it */
        channel->acknowledged = 1; /* the machine ends: its programs have not noticed that there are two of them */
        return;
    }
    if (is_another) {
        part(channel);
        run_hook(channel, program);
    }
    thaw_programs(&frozen);
    if (is_another)
        send_ready(channel);
}
