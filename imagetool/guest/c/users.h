/* Users and groups of the image. */
#ifndef ROOTDISK_USERS_H
#define ROOTDISK_USERS_H

#include "log.h"
#include <limits.h>
#include <stdint.h>
#include <sys/types.h>

static const uint64_t ID_MOST = 4294967294; /* the one above means "no change" to the kernel */
enum { GROUPS_MOST = 65536, ACCOUNTS_MOST = 8 << 20 };

/* Whom a program becomes. */
struct user {
    uid_t uid;
    gid_t gid, *groups; /* the supplementary ones; gid is the first */
    size_t count;
    char home[PATH_MAX];
};

/* Looks up USER[:GROUP], names or numbers, in the image's /etc/passwd and /etc/group. 0, or -1 and why. */
int find_user(const char *text, struct user *, struct why *);
void forget_user(struct user *);
#endif
