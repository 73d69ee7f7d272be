/* The guest's init: process 1 in the initramfs, then on the disk. A boot can be read from here; docs/layout-1.md.

   Functions return errors. Only main ends the machine. */
#include "guest.h"
#include "copy.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CMDLINE_MOST = 1 << 16, PROCESS_MOST = 16 << 20 };

double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Ends every program, writes everything back, leaves the disk clean and the machine off. */
static void __attribute__((noreturn)) power_off(enum ending ending) {
    if (!kill(-1, SIGTERM)) {
        double deadline = now() + 0.5;
        while ((waitpid(-1, NULL, WNOHANG) >= 0 || errno != ECHILD) && now() < deadline)
            usleep(2000);
        kill(-1, SIGKILL);
        while (waitpid(-1, NULL, 0) > 0)
            ;
    }
    sync();
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL))
        report("the disk could not be made read-only: %s", strerror(errno));
    sync();
    reboot(ending == POWER_OFF ? RB_POWER_OFF : RB_AUTOBOOT); /* the runner's machine ends on a reboot */
    for (;;)
        pause();
}

static int read_cmdline(struct guest *guest, struct why *why) {
    size_t length;
    char *save, *cmdline = read_file("/proc/cmdline", CMDLINE_MOST, &length); /* it stays: values point into it */
    if (!cmdline)
        return explain(why, "/proc/cmdline: %s", strerror(errno));
    /* libkrun sets what it adds in quotes */
    for (char *word = strtok_r(cmdline, " \n\"", &save); word; word = strtok_r(NULL, " \n\"", &save)) {
        if (!strncmp(word, "rootdisk.slot=", 14))
            snprintf(guest->slot_digest, sizeof guest->slot_digest, "%s", word + 14);
        else if (!strncmp(word, "rootdisk.root=", 14))
            guest->root_device = word + 14;
        else if (!strncmp(word, "rootdisk.rootflags=", 19))
            guest->root_flags = word + 19;
        else if (!strncmp(word, "rootdisk.verity=", 16))
            guest->verity = word + 16;
        else if (!strcmp(word, "rootdisk.debug=1"))
            guest->log.debug = 1;
        else if (!strcmp(word, "rootdisk.template=1"))
            guest->is_template = 1;
        else if (!strcmp(word, "rootdisk.console=poweroff"))
            guest->ending = POWER_OFF;
        else if (!strcmp(word, "rootdisk.console=reboot"))
            guest->ending = REBOOT;
        else if (!strncmp(word, "rootdisk.network=", 17))
            guest->network_text = word + 17;
    }
    guest->channel.is_console = guest->ending != BY_RUNNER;
    return 0;
}

static int read_process(struct guest *guest, struct why *why) {
    guest->process.data = read_file("/.rootdisk/process", PROCESS_MOST, &guest->process.length);
    if (guest->process.data)
        return 0;
    return errno == ENOENT ? explain(why, "the disk has no /.rootdisk/process: it was built with --plain")
                           : explain(why, "/.rootdisk/process: %s", strerror(errno));
}

/* Everything up to the program's start. */
static int boot(struct guest *guest, struct why *why) {
    umask(022);
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755"); /* each may be there, as with libkrun */
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    int console = open("/dev/console", O_RDWR | O_CLOEXEC);
    for (int fd = 0; console >= 0 && fd < 3; fd++)
        dup2(console, fd);
    if (console > 2)
        close(console);
    if (read_cmdline(guest, why) || enter_disk(guest, why))
        return -1;
    if (guest->channel.fd < 0 && !guest->channel.is_console)
        guest->channel.fd = find_port("rootdisk", 3); /* which has come by now */
    if (read_process(guest, why) || mount_all(&guest->slot, why) || configure(guest, why) || make_volumes(&guest->process, why) ||
        mount_volumes(&guest->slot, why) || cover_etc(why))
        return -1;
    renew_host_keys(guest);
    if (open_streams(&guest->slot, &guest->log, why))
        return -1;
    return main_program(&guest->program, &guest->process, &guest->slot, why);
}

/* What the runner starts in a guest that runs: copies, and what gives free blocks back. -1 if the arguments are none of it. */
static int assist(int argc, char **argv) {
    if (argc == 3 && (!strcmp(argv[1], "pack") || !strcmp(argv[1], "pack2")))
        return pack(argv[1][4] ? 2 : 1, argv[2], 0);
    if (argc == 4 && !strcmp(argv[1], "pack2") && !strcmp(argv[2], "-L"))
        return pack(2, argv[3], 1);
    if (argc == 4 && (!strcmp(argv[1], "unpack") || !strcmp(argv[1], "unpack2")))
        return unpack(argv[1][6] ? 2 : 1, argv[2], argv[3]);
    if (argc == 2 && !strcmp(argv[1], "trim"))
        return trim();
    return -1;
}

int main(int argc, char **argv) {
    static struct guest guest; /* zeros: the program is no larger for it */
    struct why why = {""};
    int status = assist(argc, argv);
    if (status >= 0)
        return status;
    if (argc > 1 && !strcmp(argv[1], "--version")) {
        puts("rootdisk init, layout 1");
        return 0;
    }
    if (getpid() != 1) {
        fputs("rootdisk: init runs as process 1 of a virtual machine\n", stderr);
        return 125;
    }
    guest.root_device = "/dev/vda";
    guest.root_flags = "";
    guest.channel.fd = -1;
    guest.channel.log = &guest.log;
    guest.log.channel = &guest.channel;
    if (boot(&guest, &why) || serve(&guest.channel, &guest.program, &why)) {
        if (guest.channel.fd < 0 && !guest.channel.is_console)
            guest.channel.fd = find_port("rootdisk", 1);
        report("%s", why.text);
        if (guest.channel.is_console)
            report("exit 125");
        send_frame(&guest.channel, ERROR, 0, why.text, strlen(why.text));
    }
    power_off(guest.ending);
}
