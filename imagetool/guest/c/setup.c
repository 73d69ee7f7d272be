/* What a program finds around it: mounts, names, network, certificates, time and entropy. */
#include "init.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void place(const char *type, const char *path, unsigned long flags, const char *data) {
    if (mkdir(path, 0755) && errno != EEXIST)
        note("%s: %s", path, strerror(errno));
    if (mount(type, path, type, flags, data) && errno != EBUSY)
        note("cannot mount %s: %s", path, strerror(errno));
}

static int is_empty(const char *path) {
    DIR *directory = opendir(path);
    int names = 0;
    while (directory && names < 3 && readdir(directory))
        names++;
    if (directory)
        closedir(directory);
    return names < 3;
}

void mount_all(void) {
    unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    place("proc", "/proc", safe, NULL);
    place("sysfs", "/sys", safe, NULL);
    place("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5");
    place("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
    place("mqueue", "/dev/mqueue", safe, NULL);
    place("cgroup2", "/sys/fs/cgroup", safe, NULL);
    place("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
    if (is_empty("/tmp"))
        place("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
    if (symlink("/proc/self/fd", "/dev/fd") | symlink("/proc/self/fd/0", "/dev/stdin") |
        symlink("/proc/self/fd/1", "/dev/stdout") | symlink("/proc/self/fd/2", "/dev/stderr"))
        note("links in /dev: %s", strerror(errno));
    mkdir("/run/rootdisk", 0755);
}

/* A file of /run/rootdisk over the one in /etc, so that the disk is not written. */
static void over_etc(const char *name, const char *text, mode_t mode) {
    char from[64], to[64];
    struct stat info;
    snprintf(from, sizeof from, "/run/rootdisk/%s", name);
    snprintf(to, sizeof to, "/etc/%s", name);
    write_file(from, text, strlen(text), mode);
    if (stat(to, &info)) {
        mkdir("/etc", 0755);
        unlink(to); /* a link to nowhere */
        close(open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    }
    if (mount(from, to, NULL, MS_BIND, NULL))
        note("%s: %s", to, strerror(errno));
}

static void up(int fd, const char *name) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    if (!ioctl(fd, SIOCGIFFLAGS, &request)) {
        request.ifr_flags |= IFF_UP | IFF_RUNNING;
        ioctl(fd, SIOCSIFFLAGS, &request);
    }
}

static struct sockaddr internet(const char *text) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct sockaddr out;
    inet_pton(AF_INET, text, &address.sin_addr);
    memcpy(&out, &address, sizeof out);
    return out;
}

/* QEMU's user network has fixed addresses, so no DHCP is needed. */
static void network(int user) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    up(fd, "lo");
    DIR *directory = user ? opendir("/sys/class/net") : NULL;
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char device[300];
        snprintf(device, sizeof device, "/sys/class/net/%s/device", entry->d_name);
        if (entry->d_name[0] == '.' || access(device, F_OK)) /* such as lo */
            continue;
        struct ifreq request = {0};
        struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
        snprintf(request.ifr_name, IFNAMSIZ, "%.15s", entry->d_name);
        request.ifr_addr = internet("10.0.2.15");
        int failed = ioctl(fd, SIOCSIFADDR, &request);
        request.ifr_netmask = internet("255.255.255.0");
        failed |= ioctl(fd, SIOCSIFNETMASK, &request);
        up(fd, entry->d_name);
        route.rt_dst = internet("0.0.0.0");
        route.rt_genmask = internet("0.0.0.0");
        route.rt_gateway = internet("10.0.2.2");
        if (failed | ioctl(fd, SIOCADDRT, &route))
            note("network %s: %s", entry->d_name, strerror(errno));
        break;
    }
    if (directory)
        closedir(directory);
    close(fd);
}

#define RNDADDENTROPY _IOW('R', 0x03, int[2]) /* include/uapi/linux/random.h, which musl has not */

static void entropy(const char *hex) {
    struct { int entropy_count, buf_size; uint8_t bytes[256]; } pool;
    uint8_t *bytes = pool.bytes;
    int length = 0;
    unsigned value;
    for (; length < 256 && sscanf(hex + 2 * length, "%2x", &value) == 1 && hex[2 * length]; length++)
        bytes[length] = value;
    pool.entropy_count = length * 8;
    pool.buf_size = length;
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (ioctl(fd, RNDADDENTROPY, &pool))
        note("entropy: %s", strerror(errno));
    close(fd);
    explicit_bzero(&pool, sizeof pool);
}

static void set_time(const char *text) {
    double wanted = strtod(text, NULL);
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    double difference = time.tv_sec + time.tv_nsec / 1e9 - wanted;
    if (difference < -1 || difference > 1) {
        time.tv_sec = wanted;
        time.tv_nsec = (wanted - time.tv_sec) * 1e9;
        clock_settime(CLOCK_REALTIME, &time);
    }
}

void configure(void) {
    const char *host = find_record(&slot, "hostname"), *machine = find_record(&slot, "machine-id");
    const char *mode = find_record(&slot, "network"), *text;
    char lines[512];
    int user = !mode || !strcmp(mode, "user");
    if (!host)
        host = "rootdisk";
    sethostname(host, strlen(host));
    network(user);
    if ((text = find_record(&slot, "entropy")))
        entropy(text);
    if ((text = find_record(&slot, "time")))
        set_time(text);
    over_etc("resolv.conf", user ? "nameserver 10.0.2.3\n" : "", 0644);
    snprintf(lines, sizeof lines, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n",
             user ? "10.0.2.15" : "127.0.1.1", host);
    over_etc("hosts", lines, 0644);
    snprintf(lines, sizeof lines, "%s\n", host);
    over_etc("hostname", lines, 0644);
    if (machine) {
        snprintf(lines, sizeof lines, "%s\n", machine);
        over_etc("machine-id", lines, 0444);
    }
    static const char *const names[] = {"ca", "cert", "key"};
    mkdir("/run/rootdisk/tls", 0755);
    for (int i = 0; i < 3; i++) {
        char key[16], path[64];
        snprintf(key, sizeof key, "tls-%s", names[i]);
        snprintf(path, sizeof path, "/run/rootdisk/tls/%s.pem", names[i]);
        if ((text = find_record(&slot, key)) && write_file(path, text, strlen(text), i == 2 ? 0400 : 0444))
            die("cannot write %s: %s", path, strerror(errno));
    }
}

/* Directories of the host: by virtiofs, or 9p where the kernel has only that. */
void mount_volumes(void) {
    const char *key, *value;
    for (size_t at = 0; (value = next_record(&slot, &at, &key));) {
        char tag[32], path[4096], mode[4];
        if (strcmp(key, "mount"))
            continue;
        if (sscanf(value, "%31[^\t]\t%4095[^\t]\t%3s", tag, path, mode) != 3)
            die("the runner sent a volume without tag, path or mode");
        make_directories(path);
        unsigned long flags = MS_NOSUID | MS_NODEV | (strcmp(mode, "ro") ? 0 : MS_RDONLY);
        if (mount(tag, path, "virtiofs", flags, NULL) &&
            (errno != ENODEV || mount(tag, path, "9p", flags, "trans=virtio,version=9p2000.L,msize=262144")))
            die("cannot mount the volume %s: %s%s", path, strerror(errno),
                errno == ENODEV ? " (the kernel has no virtiofs)" : "");
    }
}

/* An image's SSH host keys are known to all who have the image: a new sandbox gets its own, or none. */
void renew_host_keys(void) {
    DIR *directory = find_record(&slot, "first") ? opendir("/etc/ssh") : NULL;
    int found = 0, status;
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (!strncmp(entry->d_name, "ssh_host_", 9) && strstr(entry->d_name, "_key"))
            found |= !unlinkat(dirfd(directory), entry->d_name, 0);
    if (directory)
        closedir(directory);
    if (!found || access("/usr/bin/ssh-keygen", X_OK))
        return;
    pid_t pid = fork();
    if (!pid) {
        execl("/usr/bin/ssh-keygen", "ssh-keygen", "-A", NULL);
        _exit(127);
    }
    if (waitpid(pid, &status, 0) != pid || status)
        note("ssh-keygen: status %d", status);
}

/* The virtio port named `rootdisk`; -1 when there is none by then. */
int find_port(double timeout) {
    double deadline = now() + timeout;
    do {
        DIR *directory = opendir("/sys/class/virtio-ports");
        for (struct dirent *entry; directory && (entry = readdir(directory));) {
            char path[300];
            size_t length;
            snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
            char *name = entry->d_name[0] == '.' ? NULL : read_file(path, &length);
            int ours = name && !strncmp(name, "rootdisk\n", 9);
            free(name);
            if (ours) {
                snprintf(path, sizeof path, "/dev/%s", entry->d_name);
                int fd = open(path, O_RDWR | O_CLOEXEC);
                if (fd >= 0) {
                    closedir(directory);
                    return fd;
                }
            }
        }
        if (directory)
            closedir(directory);
        usleep(1000);
    } while (now() < deadline);
    return -1;
}

/* Lets no new block of the disk be used, or lets it again: with all of them reserved, whoever needs one gets ENOSPC, and what
   is in memory already is still written back. */
void hold_disk(int held) {
    static char usual[32]; /* the kernel's own reserve, while all is reserved */
    struct stat root;
    struct statvfs all;
    char path[96], text[32] = "", *name;
    size_t length;
    if (held == !!*usual || stat("/", &root) || statvfs("/", &all))
        return;
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/uevent", major(root.st_dev), minor(root.st_dev));
    char *data = read_file(path, &length);
    if (data && (name = strstr(data, "DEVNAME="))) {
        name += 8;
        snprintf(path, sizeof path, "/sys/fs/ext4/%.*s/reserved_clusters", (int)strcspn(name, "\n"), name);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (held && fd >= 0 && read(fd, usual, sizeof usual - 1) > 0)
            snprintf(text, sizeof text, "%llu", (unsigned long long)all.f_blocks - 1);
        else if (!held)
            memcpy(text, usual, sizeof text), *usual = 0;
        if (fd < 0 || pwrite(fd, text, strlen(text), 0) < 0)
            note("%s: %s", path, strerror(errno));
        close(fd);
    }
    free(data);
}
