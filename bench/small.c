/* The smallest init there can be, and a guest's program: when it starts it says how long the kernel's clock has run.
   With `clock` it says what time it is, with another word it waits for ever. With ADDRESS PORT BYTES it reads so many bytes from there, or with -BYTES sends them, and waits for the other side's end. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int carry(char **words) {
    static char data[1 << 16];
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(atoi(words[2]))};
    long left = atol(words[3]);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || inet_pton(AF_INET, words[1], &place.sin_addr) != 1 || connect(fd, (struct sockaddr *)&place, sizeof place))
        return 1;
    for (ssize_t done; left < 0; left += done)
        if ((done = write(fd, data, -left < (long)sizeof data ? -left : (long)sizeof data)) <= 0)
            return 1;
    for (ssize_t done; (done = read(fd, data, sizeof data)) > 0;)
        left -= done;
    return left > 0;
}

int main(int count, char **words) {
    if (count == 4)
        return carry(words);
    struct timespec time;
    if (count == 2 && !strcmp(words[1], "clock")) {
        clock_gettime(CLOCK_REALTIME, &time);
        return printf("%ld.%09ld\n", (long)time.tv_sec, time.tv_nsec) < 0;
    }
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
