/* What a program finds around it, as lines `key value`: docs/layout-1.md, "What a program sees". Static, so that it runs in
   every image. It asks the kernel and not a library where a library would answer something else. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static char text[1 << 16];

static const char *read_text(const char *path) {
    int fd = open(path, O_RDONLY);
    ssize_t count = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (count < 0)
        return strerror(errno);
    close(fd);
    text[count] = 0;
    text[strcspn(text, "\n")] = 0;
    for (char *at = text; *at; at++)
        if (*at == '\t')
            *at = ' ';
    return text;
}

/* A field of /proc/self/status. */
static void say_status(const char *key, const char *field) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[4096];
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, field, strlen(field)) && line[strlen(field)] == ':') {
            char *value = line + strlen(field) + 1;
            value += strspn(value, " \t");
            value[strcspn(value, "\n")] = 0;
            while (*value && value[strlen(value) - 1] == ' ')
                value[strlen(value) - 1] = 0;
            printf("%s %s\n", key, value);
        }
    if (file)
        fclose(file);
}

static void say_environment(const char *key, const char *name) {
    const char *value = getenv(name);
    printf("%s %s\n", key, value ? value : "(unset)");
}

static void say_streams(void) {
    struct stat info;
    for (int fd = 0; fd < 3; fd++) {
        char path[32];
        fstat(fd, &info);
        const char *kind = S_ISCHR(info.st_mode) ? (major(info.st_rdev) == 1 ? "/dev/null" : "terminal") : S_ISFIFO(info.st_mode) ? "pipe" : "?";
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int again = open(path, fd ? O_WRONLY | O_NOCTTY : O_RDONLY | O_NOCTTY);
        printf("stream-%d %s, %s, %s\n", fd, kind, info.st_uid == getuid() || major(info.st_rdev) == 1 ? "own" : "another's",
               again < 0 ? strerror(errno) : "can be opened");
        if (again >= 0)
            close(again);
    }
    int fd = open("/dev/stdout", O_WRONLY | O_NOCTTY);
    printf("dev-stdout %s\n", fd < 0 ? strerror(errno) : "can be opened");
    if (fd >= 0)
        close(fd);
}

static void say_descriptors(void) {
    printf("descriptors");
    for (int fd = 0; fd < 1024; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            printf(" %d", fd);
    printf("\n");
}

static void say_limits(void) {
    static const struct { const char *name; int resource; } limits[] = {
        {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"core", RLIMIT_CORE}, {"stack", RLIMIT_STACK}, {"memlock", RLIMIT_MEMLOCK},
        {"data", RLIMIT_DATA}, {"fsize", RLIMIT_FSIZE}, {"cpu", RLIMIT_CPU}, {"locks", RLIMIT_LOCKS}, {"rss", RLIMIT_RSS},
        {"as", RLIMIT_AS}, {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE}, {"rtprio", RLIMIT_RTPRIO}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        unsigned long range[2];
        char words[2][24];
        syscall(SYS_prlimit64, 0, limits[i].resource, NULL, range);
        for (int j = 0; j < 2; j++)
            snprintf(words[j], sizeof words[j], range[j] == ~0UL ? "unlimited" : "%lu", range[j]);
        printf("limit-%s %s:%s\n", limits[i].name, words[0], words[1]);
    }
}

static void say_node(const char *path) {
    struct stat info;
    char target[256];
    ssize_t length;
    if (lstat(path, &info))
        printf("%s %s\n", path, strerror(errno));
    else if (S_ISLNK(info.st_mode) && (length = readlink(path, target, sizeof target)) >= 0)
        printf("%s -> %.*s\n", path, (int)length, target);
    else
        printf("%s %s%u,%u %04o\n", path, S_ISCHR(info.st_mode) ? "c" : "?", major(info.st_rdev), minor(info.st_rdev), info.st_mode & 07777);
}

static void say_directory(const char *path) {
    struct stat info;
    if (stat(path, &info))
        printf("directory-%s %s\n", path, strerror(errno));
    else
        printf("directory-%s %u:%u %04o\n", path, info.st_uid, info.st_gid, info.st_mode & 07777);
}

/* How often a place is mounted, with which type and options. */
static void say_mount(const char *path) {
    FILE *file = fopen("/proc/self/mounts", "r");
    char line[4096], from[1024], at[1024], type[64], options[2048], last[2200] = "none";
    int count = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "%1023s %1023s %63s %2047s", from, at, type, options) == 4 && !strcmp(at, path)) {
            count++;
            snprintf(last, sizeof last, "%s%s%s%s%s", type, strncmp(options, "ro", 2) ? " rw" : " ro",
                     strstr(options, "nosuid") ? ",nosuid" : "", strstr(options, "nodev") ? ",nodev" : "",
                     strstr(options, "noexec") ? ",noexec" : "");
        }
    printf("mount-%s %d %s\n", path, count, last);
    if (file)
        fclose(file);
}

static const char *yes(int is) { return is ? "yes" : "no"; }

/* Ends the machine: by reboot(2), or by a signal to process 1. */
static int end_machine(const char *how, const char *number) {
    if (!strcmp(how, "--reboot"))
        return reboot(strtoul(number, NULL, 16));
    return kill(1, atoi(number)) || pause();
}

int main(int argc, char **argv) {
    if (argc == 3 && (!strcmp(argv[1], "--reboot") || !strcmp(argv[1], "--signal")))
        return end_machine(argv[1], argv[2]);
    static const char *const nodes[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx",
                                        "/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/core", "/etc/mtab"};
    static const char *const mounts[] = {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys/fs/cgroup", "/run", "/tmp"};
    char cwd[4096];
    mode_t mask = umask(0);
    umask(mask);
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    printf("uid %u\ngid %u\n", getuid(), getgid());
    say_status("groups", "Groups");
    say_environment("HOME", "HOME");
    say_environment("PATH", "PATH");
    say_environment("HOSTNAME", "HOSTNAME");
    say_environment("TERM", "TERM");
    say_environment("LANG", "LANG");
    say_environment("container", "container");
    printf("session-leader %s\ngroup-leader %s\n", yes(getsid(0) == getpid()), yes(getpgrp() == getpid()));
    printf("terminal %s\n", yes(open("/dev/tty", O_RDWR | O_CLOEXEC) >= 0));
    printf("process-1 %s\n", yes(getpid() == 1));
    say_status("signals-blocked", "SigBlk");
    say_status("signals-ignored", "SigIgn");
    say_status("signals-caught", "SigCgt");
    close(3); /* the terminal's */
    say_descriptors();
    say_streams();
    say_limits();
    printf("umask %04o\n", mask);
    printf("workdir %s\n", getcwd(cwd, sizeof cwd) ? cwd : strerror(errno));
    printf("oom-score-adj %s\n", read_text("/proc/self/oom_score_adj"));
    printf("nice %d\n", getpriority(PRIO_PROCESS, 0));
    say_status("capabilities", "CapEff");
    say_status("no-new-privileges", "NoNewPrivs");
    say_status("seccomp", "Seccomp");
    printf("unprivileged-ports-from %s\n", read_text("/proc/sys/net/ipv4/ip_unprivileged_port_start"));
    printf("ping-groups %s\n", read_text("/proc/sys/net/ipv4/ping_group_range"));
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        say_node(nodes[i]);
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++)
        say_mount(mounts[i]);
    printf("resolv.conf %s\n", read_text("/etc/resolv.conf"));
    printf("hosts %s\n", read_text("/etc/hosts"));
    printf("hostname %s\n", read_text("/etc/hostname"));
    int waits = 0;
    for (int i = 1; i < argc; i++)
        strcmp(argv[i], "--wait") ? say_directory(argv[i]) : (void)waits++;
    if (waits)
        puts("waiting");
    fflush(stdout);
    if (waits)
        pause();
    return 0;
}
