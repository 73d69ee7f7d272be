/* The smallest init there can be, and a guest's program: when it starts it says how long the kernel's clock has run. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words) {
    (void)words;
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    int console = getpid() == 1 ? 1 : open("/dev/console", O_WRONLY);
    dprintf(console, "up %ld.%06ld\n", (long)time.tv_sec, time.tv_nsec / 1000);
    if (count > 1) /* an idle guest */
        for (;;)
            pause();
    if (getpid() == 1)
        reboot(RB_AUTOBOOT);
    return 0;
}
