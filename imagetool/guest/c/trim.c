/* `init trim`: gives the host back what no file of the root has, for `runner trim`. Deletes do so by themselves, unless the root is
   mounted with nodiscard (rootdisk.rootflags, or a program that prefers to do it seldom). */
#include "files.h"
#include "log.h"
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* include/uapi/linux/fs.h */
struct fstrim_range { uint64_t start, len, minlen; };
#define FITRIM _IOWR('X', 121, struct fstrim_range)

int trim(void) {
    struct fstrim_range range = {.len = UINT64_MAX};
    int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0 || syncfs(root) || ioctl(root, FITRIM, &range)) {
        int is_none = errno == ENOTTY || errno == EOPNOTSUPP;
        report("trim: %s", is_none ? "this root gives nothing back to the host" : strerror(errno));
        return 1;
    }
    printf("%llu\n", (unsigned long long)range.len);
    return 0;
}
