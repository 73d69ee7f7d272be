/* Names, certificates, time, entropy and the kernel's settings. */
#include "guest.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RNDADDENTROPY _IOW('R', 0x03, int[2]) /* include/uapi/linux/random.h, which musl has not */
#define RNDRESEEDCRNG _IO('R', 0x07)
static const char HOSTS[] = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n"
                            "ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/* Writes a file again that is mounted somewhere, in its place. */
static int rewrite_file(const char *path, const char *text, size_t length, struct why *why) {
    int fd = open(path, O_WRONLY | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int failed = fd < 0 || write(fd, text, length) != (ssize_t)length;
    if (failed)
        explain(why, "cannot write %s again: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return failed ? -1 : 0;
}

/* A file of /run/rootdisk over the one in /etc, so that the disk is not written. With `again` it is there already. */
static int over_etc(const char *name, const char *text, size_t length, mode_t mode, int again, struct why *why) {
    char from[64], to[64];
    snprintf(from, sizeof from, "/run/rootdisk/%s", name);
    snprintf(to, sizeof to, "/etc/%s", name);
    if (again)
        return rewrite_file(from, text, length, why);
    if (write_file(from, text, length, mode))
        return explain(why, "cannot write %s: %s", from, strerror(errno));
    int place = open_place(to, MAKE_FILE);
    int failed = place < 0 || mount_at(place, from, NULL, MS_BIND, NULL);
    if (failed)
        explain(why, "cannot put %s in place: %s", to, strerror(errno));
    if (place >= 0)
        close(place);
    return failed ? -1 : 0;
}

static int is_mounted_at(int place, const struct stat *file, const struct stat *above) {
    struct stat info;
    return fstat(place, &info) || info.st_dev != above->st_dev || (info.st_dev == file->st_dev && info.st_ino == file->st_ino);
}

/* What a volume over /etc has covered is put in place again, unless the volume is read-only, or has a file of its own mounted. */
int cover_etc(struct why *why) {
    static const char *const names[] = {"resolv.conf", "hosts", "hostname", "machine-id"};
    struct stat above, file;
    int failed = stat("/etc", &above) ? errno != ENOENT : 0;
    for (size_t i = 0; !failed && i < sizeof names / sizeof *names; i++) {
        char from[64], to[64];
        snprintf(from, sizeof from, "/run/rootdisk/%s", names[i]);
        snprintf(to, sizeof to, "/etc/%s", names[i]);
        if (stat(from, &file)) /* it is not there, or a volume covers /run */
            continue;
        int place = open_place(to, MAKE_FILE);
        failed = place < 0 ? errno != EROFS : !is_mounted_at(place, &file, &above) && mount_at(place, from, NULL, MS_BIND, NULL);
        if (failed)
            explain(why, "cannot put %s in place: %s", to, strerror(errno));
        if (place >= 0)
            close(place);
    }
    return failed ? -1 : 0;
}

/* /etc/hosts: the usual names, those of --add-host, and our own. */
static int write_hosts(const struct records *slot, const char *host, const struct network *network, int again, struct why *why) {
    char *text = NULL;
    size_t length = 0;
    const char *key, *value;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return explain(why, "no memory");
    fputs(HOSTS, out);
    for (size_t at = 0; (value = next_record(slot, &at, &key));)
        if (!strcmp(key, "host"))
            fprintf(out, "%s\n", value);
    size_t bare = strcspn(host, "."); /* box.example.com is also found as box */
    fprintf(out, "%s\t%s", network->is_wanted ? network->address : "127.0.1.1", host);
    if (bare && host[bare])
        fprintf(out, " %.*s", (int)bare, host);
    fputc('\n', out);
    int failed = fclose(out) ? explain(why, "no memory") : over_etc("hosts", text, length, 0644, again, why);
    free(text);
    return failed;
}

static int configure_names(const struct records *slot, const struct network *network, int again, struct why *why) {
    const char *host = find_record(slot, "hostname"), *machine = find_record(slot, "machine-id");
    const char *resolver = find_record(slot, "resolv");
    char line[300], own_resolver[32] = "";
    if (!host)
        host = "rootdisk";
    if (!resolver && network->is_wanted && *network->resolver)
        snprintf(own_resolver, sizeof own_resolver, "nameserver %s\n", network->resolver);
    if (!resolver)
        resolver = own_resolver;
    if (sethostname(host, strlen(host)))
        return explain(why, "cannot set the host name: %s", strerror(errno));
    if (over_etc("resolv.conf", resolver, strlen(resolver), 0644, again, why) || write_hosts(slot, host, network, again, why))
        return -1;
    snprintf(line, sizeof line, "%.256s\n", host);
    if (over_etc("hostname", line, strlen(line), 0644, again, why))
        return -1;
    snprintf(line, sizeof line, "%.64s\n", machine ? machine : "");
    return machine ? over_etc("machine-id", line, strlen(line), 0444, again, why) : 0;
}

static int hex(char letter) {
    const char *digits = "0123456789abcdef", *found = letter ? strchr(digits, letter) : NULL;
    return found ? (int)(found - digits) : -1;
}

int add_entropy(const char *text, struct why *why) {
    struct { int entropy_count, buf_size; uint8_t bytes[256]; } pool;
    int length = 0;
    for (; length < 256 && hex(text[2 * length]) >= 0 && hex(text[2 * length + 1]) >= 0; length++)
        pool.bytes[length] = hex(text[2 * length]) << 4 | hex(text[2 * length + 1]);
    pool.entropy_count = length * 8;
    pool.buf_size = length;
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    /* The kernel would use what is added only minutes later. An error means that its generator waits for this very entropy. */
    int failed = fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) || (ioctl(fd, RNDRESEEDCRNG) && errno != ENODATA && errno != EINVAL);
    if (failed)
        explain(why, "cannot add to the kernel's entropy: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    explicit_bzero(&pool, sizeof pool);
    return failed ? -1 : 0;
}

int set_clock(uint64_t seconds, uint64_t nanoseconds, struct why *why) {
    struct timespec time = {seconds, nanoseconds};
    return clock_settime(CLOCK_REALTIME, &time) ? explain(why, "cannot set the clock: %s", strerror(errno)) : 0;
}

/* Seconds with a fraction of up to nine digits. The clock is set if it is more than a second off. */
static int set_time(const char *text, struct why *why) {
    const uint64_t most = (uint64_t)1 << 33; /* the year 2242: later than 2106, and what ext4 holds */
    uint64_t seconds, fraction = 0;
    size_t whole = strcspn(text, "."), digits = text[whole] ? strlen(text + whole + 1) : 0;
    struct timespec time;
    if (parse_number(text, whole, most, &seconds) || digits > 9 || (digits && parse_number(text + whole + 1, digits, 999999999, &fraction)))
        return explain(why, "the runner sent a time that is none: %.40s", text);
    for (size_t i = digits; i < 9; i++)
        fraction *= 10;
    clock_gettime(CLOCK_REALTIME, &time);
    double difference = time.tv_sec - (double)seconds + (time.tv_nsec - (double)fraction) / 1e9;
    if (difference >= -1 && difference <= 1)
        return 0;
    return set_clock(seconds, fraction, why);
}

/* Settings of the kernel that docker has: every user may listen on every port, and send a ping. */
static int set_kernel(struct why *why) {
    static const char *const settings[][2] = {
        {"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"}, {"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (write_setting(settings[i][0], settings[i][1]) && errno != ENOENT)
            return explain(why, "%s: %s", settings[i][0], strerror(errno));
    return 0;
}

/* Certificates and key of the run; the key belongs to the program's user. */
static int write_certificates(struct guest *guest, struct why *why) {
    static const char *const names[] = {"ca", "cert", "key"};
    struct user user;
    const char *text;
    for (int i = 0; i < 3; i++) {
        char key[16], path[64];
        snprintf(key, sizeof key, "tls-%s", names[i]);
        snprintf(path, sizeof path, "/run/rootdisk/tls/%s.pem", names[i]);
        if (!(text = find_record(&guest->slot, key)))
            continue;
        if ((mkdir("/run/rootdisk/tls", 0755) && errno != EEXIST) || write_file(path, text, strlen(text), i == 2 ? 0400 : 0444))
            return explain(why, "cannot write %s: %s", path, strerror(errno));
        if (i < 2)
            continue;
        const char *name = find_record(&guest->slot, "user");
        if (!name)
            name = find_record(&guest->process, "user");
        if (find_user(name ? name : "", &user, why))
            return -1;
        int failed = chown(path, user.uid, user.gid);
        forget_user(&user);
        if (failed)
            return explain(why, "cannot give %s to its user: %s", path, strerror(errno));
    }
    return 0;
}

int configure(struct guest *guest, struct why *why) {
    const char *entropy = find_record(&guest->slot, "entropy"), *time = find_record(&guest->slot, "time");
    if (plan_network(guest, why) || configure_network(guest, why) || set_kernel(why) || (entropy && add_entropy(entropy, why)) || (time && !guest->is_template && set_time(time, why)))
        return -1;
    return configure_names(&guest->slot, &guest->network, 0, why) || write_certificates(guest, why) || trust_authority(&guest->slot, why) ? -1 : 0;
}

int become_another(const struct records *orders, struct why *why) {
    const char *entropy = find_record(orders, "entropy"), *mac = find_record(orders, "mac"), *mode = find_record(orders, "network");
    struct network network = user_network;
    network.is_wanted = mode && !strcmp(mode, "user");
    if (!entropy || add_entropy(entropy, why))
        return entropy ? -1 : explain(why, "the runner sent no entropy to a snapshot");
    syscall(SYS_delete_module, "virtio_balloon", O_NONBLOCK); /* the memory is now that of a snapshot, which takes none back */
    if (mac)
        renew_mac(mac);
    return configure_names(orders, &network, 1, why);
}

/* An image's SSH host keys are known to all who have the image: a new sandbox gets its own, or none. */
void renew_host_keys(struct guest *guest) {
    DIR *directory = find_record(&guest->slot, "first") ? opendir("/etc/ssh") : NULL;
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
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
        note(&guest->log, "ssh-keygen failed: the sandbox has no SSH host keys");
}
