/* Files, records, users, and how a program is started. */
#include "init.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

/* A whole file with a NUL after it, or NULL. */
char *read_file(const char *path, size_t *length) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t room = 4096, used = 0;
    char *data = fd < 0 ? NULL : malloc(room + 1);
    ssize_t count;
    while (data && (count = read(fd, data + used, room - used)) > 0)
        if ((used += count) == room)
            data = realloc(data, (room *= 2) + 1);
    if (fd >= 0)
        close(fd);
    if (data)
        data[*length = used] = 0;
    return data;
}

int write_file(const char *path, const char *data, size_t length, mode_t mode) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    int failed = fd < 0 || write(fd, data, length) != (ssize_t)length || fchmod(fd, mode);
    if (fd >= 0)
        close(fd);
    return failed;
}

/* The next record's value, its key in *key; NULL at the end. */
const char *next_record(const struct records *records, size_t *at, const char **key) {
    static char name[64];
    while (*at < records->length) {
        char *start = records->data + *at, *end = memchr(start, 0, records->length - *at);
        if (!end)
            return NULL;
        *at += end - start + 1;
        char *equals = strchr(start, '=');
        if (!equals || equals - start >= (int)sizeof name)
            continue;
        memcpy(name, start, equals - start);
        name[equals - start] = 0;
        *key = name;
        return equals + 1;
    }
    return NULL;
}

const char *find_record(const struct records *records, const char *wanted) {
    const char *key, *value;
    for (size_t at = 0; (value = next_record(records, &at, &key));)
        if (!strcmp(key, wanted))
            return value;
    return NULL;
}

static void append(char ***list, const char *text) {
    size_t count = 0;
    while (*list && (*list)[count])
        count++;
    *list = realloc(*list, (count + 2) * sizeof **list);
    (*list)[count] = (char *)text;
    (*list)[count + 1] = NULL;
}

/* NAME=value into an environment, in place of an earlier NAME. */
void set_env(char ***env, const char *text) {
    size_t name = strcspn(text, "=") + 1;
    for (char **item = *env; item && *item; item++)
        if (!strncmp(*item, text, name)) {
            *item = (char *)text;
            return;
        }
    append(env, text);
}

/* Field number `n` of a line of passwd or group, in place. */
static char *field(char *line, int n) {
    while (n-- && line)
        if ((line = strchr(line, ':')))
            line++;
    return line;
}

/* The line of `path` whose name, or else whose number, is `text`; cut into a copy. */
static char *entry(const char *path, const char *text) {
    size_t length, width = strcspn(text, ":");
    char *data = read_file(path, &length), *save, *found = NULL;
    for (char *line = data ? strtok_r(data, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save)) {
        char *number = field(line, 2);
        if (!strncmp(line, text, width) && line[width] == ':') {
            free(found);
            found = strdup(line);
            break;
        }
        if (number && !found && !strncmp(number, text, width) && number[width] == ':')
            found = strdup(line);
    }
    free(data);
    return found;
}

static int is_number(const char *text, size_t length) { return length && strspn(text, "0123456789") >= length; }

void find_user(const char *text, uid_t *uid, gid_t *gid, gid_t *groups, int *count, const char **home) {
    const char *group = strchr(text, ':');
    size_t width = strcspn(text, ":"), length;
    char *line = entry("/etc/passwd", *text ? text : "0"), *save;
    *uid = *gid = 0;
    *count = 0;
    *home = "/";
    if (line && field(line, 5)) {
        char *end = field(line, 5);
        *uid = strtoul(field(line, 2), NULL, 10);
        *gid = strtoul(field(line, 3), NULL, 10);
        end[strcspn(end, ":")] = 0;
        *home = *end ? end : "/";
        line[strcspn(line, ":")] = 0;
    } else if (is_number(text, width)) {
        *uid = strtoul(text, NULL, 10);
    } else if (width) {
        die("the image has no user %.*s", (int)width, text);
    }
    if (group && group[1]) {
        char *found = entry("/etc/group", ++group);
        if (!found && !is_number(group, strlen(group)))
            die("the image has no group %s", group);
        *gid = strtoul(found && field(found, 2) ? field(found, 2) : group, NULL, 10);
        return; /* a group that is given is the only one, as container runtimes have it */
    }
    char *data = line ? read_file("/etc/group", &length) : NULL;
    for (char *item = data ? strtok_r(data, "\n", &save) : NULL; item; item = strtok_r(NULL, "\n", &save)) {
        char *names = field(item, 3), *inner, *number = field(item, 2);
        for (char *name = names ? strtok_r(names, ",", &inner) : NULL; name; name = strtok_r(NULL, ",", &inner))
            if (!strcmp(name, line) && *count < GROUPS)
                groups[(*count)++] = strtoul(number, NULL, 10);
    }
    free(data);
}

void make_directories(const char *path) {
    char part[4096];
    for (const char *slash = strchr(path + 1, '/');; slash = strchr(slash + 1, '/')) {
        size_t length = slash ? (size_t)(slash - path) : strlen(path);
        if (length < sizeof part) {
            memcpy(part, path, length);
            part[length] = 0;
            mkdir(part, 0755);
        }
        if (!slash)
            return;
    }
}

/* Starts a program; fds become its input, output and errors as the init sees them (-1: none). -1 on failure. */
pid_t spawn(const struct program *program, int fds[3]) {
    int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}}, terminal = -1, other = -1;
    uid_t uid;
    gid_t gid, groups[GROUPS];
    int count;
    const char *home;
    find_user(program->user, &uid, &gid, groups, &count, &home);
    if (program->tty) {
        int unlock = 0, number;
        char name[32];
        terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (terminal < 0 || ioctl(terminal, TIOCSPTLCK, &unlock) || ioctl(terminal, TIOCGPTN, &number))
            return -1;
        snprintf(name, sizeof name, "/dev/pts/%d", number);
        other = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
        fchown(other, uid, -1);
    } else {
        for (int i = 0; channel >= 0 && i < 3; i++)
            if ((i || program->input) && pipe2(pipes[i], O_CLOEXEC))
                return -1;
    }
    pid_t pid = fork();
    if (pid) {
        for (int i = 0; i < 3; i++) {
            fds[i] = program->tty ? (i < 2 ? fcntl(terminal, F_DUPFD_CLOEXEC, 0) : -1) : pipes[i][i == 0];
            if (!program->tty && pipes[i][i != 0] >= 0)
                close(pipes[i][i != 0]);
            if (fds[i] >= 0)
                fcntl(fds[i], F_SETFL, O_NONBLOCK);
        }
        if (terminal >= 0)
            close(terminal), close(other);
        return pid;
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (program->tty)
        ioctl(other, TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++) {
        int fd = program->tty ? other : pipes[i][i != 0];
        if (fd >= 0)
            dup2(fd, i);
        else if (i == 0)
            dup2(open("/dev/null", O_RDONLY), 0);
    }
    make_directories(program->workdir);
    if (setgroups(count, groups) || setgid(gid) || setuid(uid))
        dprintf(2, "rootdisk: cannot become user %s: %s\n", program->user, strerror(errno)), _exit(125);
    if (chdir(program->workdir))
        dprintf(2, "rootdisk: working directory %s: %s\n", program->workdir, strerror(errno)), _exit(126);
    extern char **environ;
    environ = program->env;
    execvp(program->argv[0], program->argv);
    dprintf(2, "rootdisk: cannot run %s: %s\n", program->argv[0], strerror(errno));
    _exit(errno == ENOENT || errno == ENOTDIR ? 127 : 126);
}

static const char *joined(const char *name, const char *value) {
    char *text = malloc(strlen(name) + strlen(value) + 2);
    sprintf(text, "%s=%s", name, value);
    return text;
}

static void add_env(char ***env, const struct records *records) {
    const char *key, *value;
    for (size_t at = 0; (value = next_record(records, &at, &key));)
        if (!strcmp(key, "env"))
            set_env(env, value);
}

/* The image's program with the build's and the slot's changes. */
void main_program(struct program *program) {
    static const char *const tls[][3] = {
        {"ROOTDISK_TLS_CA", "/.rootdisk/tls/ca.pem", "/run/rootdisk/tls/ca.pem"},
        {"ROOTDISK_TLS_CERT", "/.rootdisk/tls/client.pem", "/run/rootdisk/tls/cert.pem"},
        {"ROOTDISK_TLS_KEY", "", "/run/rootdisk/tls/key.pem"},
    };
    const struct records *from[] = {&process, &slot};
    const char *key, *value, *home, *user, *workdir;
    char **entrypoint = NULL, **command = NULL, host[256] = "";
    for (int i = 0; i < 2; i++) {
        int entry_seen = 0, command_seen = 0;
        if (i && find_record(&slot, "noentrypoint"))
            entrypoint = command = NULL;
        for (size_t at = 0; (value = next_record(from[i], &at, &key));) {
            if (!strcmp(key, "entrypoint")) {
                if (i && !entry_seen++)
                    entrypoint = command = NULL;
                append(&entrypoint, value);
            }
        }
        for (size_t at = 0; (value = next_record(from[i], &at, &key));)
            if (!strcmp(key, "cmd")) {
                if (i && !command_seen++)
                    command = NULL;
                append(&command, value);
            }
    }
    for (; entrypoint && *entrypoint; entrypoint++)
        append(&program->argv, *entrypoint);
    for (; command && *command; command++)
        append(&program->argv, *command);
    if (!program->argv)
        die("the image names no program: give one after --");
    user = find_record(&slot, "user");
    workdir = find_record(&slot, "workdir");
    program->user = user ? user : find_record(&process, "user");
    program->workdir = workdir ? workdir : find_record(&process, "workdir");
    if (!program->user)
        program->user = "";
    if (!program->workdir || !*program->workdir)
        program->workdir = "/";
    program->tty = find_record(&slot, "tty") && channel >= 0;
    program->input = find_record(&slot, "stdin") != NULL;

    uid_t uid;
    gid_t gid, groups[GROUPS];
    int count;
    find_user(program->user, &uid, &gid, groups, &count, &home);
    gethostname(host, sizeof host - 1);
    append(&program->env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    append(&program->env, joined("HOSTNAME", host));
    append(&program->env, joined("HOME", home));
    if (program->tty)
        append(&program->env, "TERM=xterm");
    for (int i = 0; i < 3; i++)
        for (int late = 1; late < 3; late++)
            if (*tls[i][late] && !access(tls[i][late], F_OK))
                set_env(&program->env, joined(tls[i][0], tls[i][late]));
    if (chown(tls[2][2], uid, gid) && errno != ENOENT)
        note("%s: %s", tls[2][2], strerror(errno));
    struct records built = {0};
    built.data = read_file("/.rootdisk/env", &built.length);
    for (size_t at = 0; built.data && at < built.length; at += strlen(built.data + at) + 1)
        set_env(&program->env, built.data + at);
    add_env(&program->env, &slot);
}

/* A program of an EXEC frame: its own command, the main program's environment and user where it says nothing. */
void exec_program(struct program *program, const struct records *records) {
    const char *key, *value;
    char **env = NULL;
    for (char **item = program->env; *item; item++)
        append(&env, *item);
    program->env = env;
    program->argv = NULL;
    add_env(&program->env, records);
    for (size_t at = 0; (value = next_record(records, &at, &key));)
        if (!strcmp(key, "cmd"))
            append(&program->argv, value);
    if ((value = find_record(records, "user")))
        program->user = value;
    if ((value = find_record(records, "workdir")))
        program->workdir = value;
    program->tty = find_record(records, "tty") != NULL;
    program->input = find_record(records, "stdin") != NULL;
}
