/* How a program is started. */
#include "program.h"
#include "files.h"
#include "users.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
enum { FAILED = 125, NOT_RUN = 126, NOT_FOUND = 127 };

static void close_all(int *fds, int count) {
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static int open_terminal(int ends[3][2]) {
    int unlock = 0, number, terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    char name[32];
    ends[0][0] = terminal;
    if (terminal < 0 || ioctl(terminal, TIOCSPTLCK, &unlock) || ioctl(terminal, TIOCGPTN, &number))
        return -1;
    snprintf(name, sizeof name, "/dev/pts/%d", number);
    ends[0][1] = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    ends[1][0] = fcntl(terminal, F_DUPFD_CLOEXEC, 0);
    return ends[0][1] < 0 || ends[1][0] < 0 ? -1 : 0;
}

/* Both ends of a program's input, output and errors: [i][0] is ours, [i][1] the program's; -1 for none. The program's belong to
   its user, so that it can open /dev/stdout. */
static int connect_program(const struct program *program, int has_channel, uid_t uid, int ends[3][2]) {
    if (program->tty && has_channel)
        return open_terminal(ends) || fchown(ends[0][1], uid, -1);
    for (int i = 0; has_channel && i < 3; i++) {
        int both[2];
        if (!i && !program->input)
            continue;
        if (pipe2(both, O_CLOEXEC))
            return -1;
        ends[i][0] = both[i == 0];
        ends[i][1] = both[i != 0];
        if (uid && fchown(ends[i][1], uid, -1))
            return -1;
    }
    return 0;
}

/* Everything that a program gets in its environment: defaults, then what has been said. */
struct environment { struct list list; char home[PATH_MAX + 8], host[300], term[300]; };

static int make_environment(const struct program *program, const struct user *user, struct environment *out) {
    char host[257] = "";
    out->list = (struct list){0};
    gethostname(host, sizeof host - 1);
    snprintf(out->home, sizeof out->home, "HOME=%s", user->home);
    snprintf(out->host, sizeof out->host, "HOSTNAME=%s", host);
    snprintf(out->term, sizeof out->term, "TERM=%.256s", program->term);
    int failed = append(&out->list, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") ||
                 append(&out->list, out->host) || append(&out->list, out->home) ||
                 (program->tty && append(&out->list, out->term)) || (program->is_first && append(&out->list, "container=rootdisk"));
    for (size_t i = 0; !failed && i < program->env.count; i++)
        if (strcmp(program->env.items[i], "HOME=")) /* runc takes it for none */
            failed = append(&out->list, program->env.items[i]);
    return failed || keep_last(&out->list) ? -1 : 0;
}

/* In the child from here on. What fails is said on its standard error; of the main program the init is told by a byte. */
enum { MARK = 3 };
static int mark_fd = -1;

static void __attribute__((noreturn, format(printf, 2, 3))) give_up(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report_list(format, arguments);
    va_end(arguments);
    if (mark_fd >= 0 && write(mark_fd, "", 1) < 0)
        status = FAILED;
    _exit(status);
}

static void reset_signals(void) {
    sigset_t none;
    for (int number = 1; number <= SIGNAL_MOST; number++)
        signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void take_streams(const struct program *program, int ends[3][2], int mark) {
    int terminal = ends[0][1] >= 0 && ends[1][1] < 0 && program->tty;
    if (terminal)
        ioctl(ends[0][1], TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++) {
        int fd = terminal ? ends[0][1] : ends[i][1];
        if (fd < 0 && !i)
            fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            dup2(fd, i);
    }
    int first = mark == MARK || (mark >= 0 && dup3(mark, MARK, O_CLOEXEC) == MARK) ? MARK + 1 : MARK;
    mark_fd = first > MARK ? MARK : -1;
    if (syscall(SYS_close_range, first, ~0U, 0)) /* Linux before 5.9 */
        for (int fd = first; fd < 1024; fd++)
            close(fd);
}

static void set_limits(const struct program *program) {
    for (int i = 0; i < program->limit_count; i++)
        if (setrlimit(program->limits[i].resource, &program->limits[i].range))
            give_up(FAILED, "limit %d: %s", program->limits[i].resource, strerror(errno));
}

/* Makes the working directory and enters it, as root: a program may stay in a directory that its user could not enter. If root
   cannot enter it, as on some file systems of a host, its user tries. */
static int enter_workdir(const char *path) {
    int fd = open_place(path, MAKE_DIRECTORY);
    if (fd < 0)
        return errno == EACCES ? 0 : give_up(NOT_RUN, "working directory %.300s: %s", path, strerror(errno)), 0;
    int entered = !fchdir(fd);
    close(fd);
    return entered;
}

/* Opens the file that execvp() has found, by its name or in PATH; -1 if there is none. */
static int open_program(const char *name) {
    char place[PATH_MAX];
    int fd = strchr(name, '/') ? open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;
    const char *path = strchr(name, '/') ? NULL : getenv("PATH");
    for (size_t width; fd < 0 && path && *path; path += width + (path[width] == ':')) {
        width = strcspn(path, ":");
        if (snprintf(place, sizeof place, "%.*s/%s", (int)width, path, name) < (int)sizeof place)
            fd = open(place, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    }
    return fd;
}

/* What a program needs that is not there, by its first line; NULL if the program itself is not there. */
static const char *say_what_lacks(const char *name) {
    static char head[256], text[sizeof head + 64];
    int fd = open_program(name);
    ssize_t count = fd < 0 ? -1 : read(fd, head, sizeof head - 1);
    if (fd >= 0)
        close(fd);
    if (fd < 0)
        return strchr(name, '/') && !access(name, F_OK) ? "its interpreter or loader is not in the image" : NULL;
    if (count < 2 || strncmp(head, "#!", 2))
        return "its loader is not in the image";
    char *interpreter = head + 2 + strspn(head + 2, " \t");
    interpreter[strcspn(interpreter, " \t\n")] = 0;
    if (strchr(interpreter, '\r'))
        return "its first line ends with CR LF: write the file with LF alone";
    snprintf(text, sizeof text, "its interpreter %s is not in the image", interpreter);
    return text;
}

/* Why a program cannot be run, better than strerror() has it. */
static const char *say_why(const char *name, int error) {
    const char *lacks = error == ENOENT && *name ? say_what_lacks(name) : NULL;
    if (lacks)
        return lacks;
    return error == ENOEXEC ? "Exec format error: it is for another processor, or a script without #! in its first line" : strerror(error);
}

static void __attribute__((noreturn)) become(const struct program *program, const struct user *user, char **env) {
    const char *path = program->argv.items[0];
    extern char **environ;
    umask(022);
    set_limits(program);
    int entered = program->makes_workdir ? enter_workdir(program->workdir) : !chdir(program->workdir);
    if (setgroups(user->count, user->groups) || setgid(user->gid) || setuid(user->uid))
        give_up(FAILED, "cannot become user %.300s: %s", program->user, strerror(errno));
    if (!entered && chdir(program->workdir))
        give_up(NOT_RUN, "working directory %.300s: %s", program->workdir, strerror(errno));
    environ = env;
    execvp(path, program->argv.items);
    int error = errno;
    give_up(error == ENOENT || error == ENOTDIR ? NOT_FOUND : NOT_RUN, "cannot run %.300s: %s", path, say_why(path, error));
}

/* A process for the program; process 1 of a new PID namespace if it has to be. Later ones, of exec, get into that namespace. */
static pid_t fork_program(const struct program *program, int ready[2], int waits) {
    if ((program->is_first && unshare(CLONE_NEWPID)) || (waits && pipe2(ready, O_CLOEXEC)))
        return -1;
    return fork();
}

pid_t spawn(const struct program *program, int has_channel, int fds[3], int *starts, struct why *why) {
    int ends[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}}, ready[2] = {-1, -1};
    struct user user;
    struct environment env = {.list = {0}};
    if (find_user(program->user, &user, why))
        return -1;
    pid_t pid = -1;
    if (!make_environment(program, &user, &env) && !connect_program(program, has_channel, user.uid, ends))
        pid = fork_program(program, ready, starts != NULL);
    if (!pid) {
        setsid();
        reset_signals();
        take_streams(program, ends, ready[1]);
        if (program->is_first && mount_own_proc())
            give_up(FAILED, "cannot mount /proc: %s", strerror(errno));
        become(program, &user, env.list.items);
    }
    if (pid < 0)
        explain(why, "%s", strerror(errno));
    close_all(&ready[1], 1);
    char byte;
    ssize_t count = 0;
    while (pid > 0 && ready[0] >= 0 && (count = read(ready[0], &byte, 1)) < 0 && errno == EINTR)
        ; /* until it has become the program, or cannot */
    if (starts)
        *starts = count <= 0;
    close_all(ready, 1);
    for (int i = 0; i < 3; i++) {
        fds[i] = pid < 0 ? -1 : ends[i][0];
        close_all(pid < 0 ? ends[i] : &ends[i][1], pid < 0 ? 2 : 1);
        if (fds[i] >= 0)
            fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    free(env.list.items);
    forget_user(&user);
    return pid;
}
