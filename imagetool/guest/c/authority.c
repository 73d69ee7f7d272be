/* The authority of --secret, which programs have to trust: in bundles of their own, and in those of the image. */
#include "guest.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define ALONE "/run/rootdisk/authority.pem"
#define BUNDLE "/run/rootdisk/authorities.pem"
enum { BUNDLE_MOST = 8 << 20 };

/* `certificates` of the image and then ours as the new file `path`. */
static int write_bundle(const char *path, const char *certificates, size_t length, const char *ours) {
    size_t own = strlen(ours);
    char *text = malloc(length + own + 1);
    if (!text)
        return -1;
    if (length)
        memcpy(text, certificates, length);
    text[length] = '\n'; /* a file may end without one */
    memcpy(text + length + 1, ours, own);
    int failed = write_file(path, text, length + 1 + own, 0444), error = errno;
    free(text);
    errno = error;
    return failed;
}

/* The bundle `path` of the image gets ours too, unless it is another name of one that has it. 1 if there is none. */
static int cover_bundle(const char *path, int number, const char *ours, struct why *why) {
    char own[64];
    size_t length;
    struct stat file, run;
    if (stat(path, &file) || stat(ALONE, &run) || !S_ISREG(file.st_mode) || file.st_dev == run.st_dev)
        return 1;
    char *text = read_file(path, BUNDLE_MOST, &length);
    if (!text)
        return explain(why, "%s cannot be read: %s", path, strerror(errno));
    snprintf(own, sizeof own, "/run/rootdisk/authorities-%d.pem", number);
    int failed = write_bundle(own, text, length, ours), place = -1;
    if (!failed && access(BUNDLE, F_OK))
        failed = write_bundle(BUNDLE, text, length, ours);
    free(text);
    if (!failed)
        failed = (place = open(path, O_PATH | O_CLOEXEC)) < 0 || mount_at(place, own, NULL, MS_BIND, NULL);
    if (failed)
        explain(why, "cannot put certificates in place at %s: %s", path, strerror(errno));
    if (place >= 0)
        close(place);
    return failed ? -1 : 0;
}

int trust_authority(const struct records *slot, struct why *why) {
    static const char *const bundles[] = {
        "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"};
    const char *ours = find_record(slot, "authority");
    if (!ours)
        return 0;
    if (write_file(ALONE, ours, strlen(ours), 0444))
        return explain(why, "cannot write %s: %s", ALONE, strerror(errno));
    for (size_t i = 0; i < sizeof bundles / sizeof *bundles; i++)
        if (cover_bundle(bundles[i], i, ours, why) < 0)
            return -1;
    if (access(BUNDLE, F_OK) && write_bundle(BUNDLE, NULL, 0, ours))
        return explain(why, "cannot write %s: %s", BUNDLE, strerror(errno));
    return 0;
}
