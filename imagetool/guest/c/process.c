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

/* A list of texts with a NULL at its end, which grows. */
struct list { char **items; size_t count, room; };

static void append(struct list *list, const char *text) {
    if (list->count + 1 >= list->room) {
        list->room = list->room ? 2 * list->room : 16;
        list->items = realloc(list->items, list->room * sizeof *list->items);
        if (!list->items)
            die("no memory");
    }
    list->items[list->count++] = (char *)text;
    list->items[list->count] = NULL;
}

/* Leaves of variables of one name the last; where the first one was. In one pass over a table of their names. */
static void keep_last(struct list *env) {
    size_t slots = 64, kept = 0;
    while (slots < 2 * env->count)
        slots *= 2;
    size_t *table = calloc(slots, sizeof *table); /* a place in the list and one; 0: none */
    if (!table)
        die("no memory");
    for (size_t i = 0; i < env->count; i++) {
        size_t width = strcspn(env->items[i], "="), at = 5381;
        for (size_t j = 0; j < width; j++)
            at = at * 33 + (unsigned char)env->items[i][j];
        for (at %= slots; table[at]; at = (at + 1) % slots) {
            const char *other = env->items[table[at] - 1];
            if (!strncmp(other, env->items[i], width) && (other[width] == '=' || !other[width]))
                break;
        }
        if (!table[at])
            table[at] = ++kept;
        env->items[table[at] - 1] = env->items[i];
    }
    env->count = kept;
    if (env->items)
        env->items[kept] = NULL;
    free(table);
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

/* Looks a user and group up, as names or numbers: NULL, or why there is none. */
const char *find_user(const char *text, struct user *user) {
    static char why[160];
    const char *group = strchr(text, ':');
    size_t width = strcspn(text, ":"), length;
    char *line = entry("/etc/passwd", *text ? text : "0"), *save;
    *user = (struct user){.home = "/"};
    if (line && field(line, 5)) {
        char *home = field(line, 5);
        user->uid = strtoul(field(line, 2), NULL, 10);
        user->gid = strtoul(field(line, 3), NULL, 10);
        home[strcspn(home, ":")] = 0;
        if (*home)
            snprintf(user->home, sizeof user->home, "%s", home);
        line[strcspn(line, ":")] = 0;
    } else if (is_number(text, width)) {
        user->uid = strtoul(text, NULL, 10);
    } else if (width) {
        snprintf(why, sizeof why, "the image has no user %.*s", (int)(width < 80 ? width : 80), text);
        free(line);
        return why;
    }
    if (group && group[1]) {
        char *found = entry("/etc/group", ++group);
        int known = found || is_number(group, strlen(group));
        if (!known)
            snprintf(why, sizeof why, "the image has no group %.80s", group);
        user->gid = strtoul(found && field(found, 2) ? field(found, 2) : group, NULL, 10);
        free(found);
        free(line);
        return known ? NULL : why; /* a group that is given is the only one, as container runtimes have it */
    }
    char *data = line ? read_file("/etc/group", &length) : NULL;
    for (char *item = data ? strtok_r(data, "\n", &save) : NULL; item; item = strtok_r(NULL, "\n", &save)) {
        char *names = field(item, 3), *inner, *number = field(item, 2);
        for (char *name = names ? strtok_r(names, ",", &inner) : NULL; name; name = strtok_r(NULL, ",", &inner))
            if (!strcmp(name, line) && user->count < GROUPS)
                user->groups[user->count++] = strtoul(number, NULL, 10);
    }
    free(data);
    free(line);
    return NULL;
}

void make_directories(const char *path) {
    char part[4096];
    if (!*path)
        return;
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

static void close_all(int *fds, int count) {
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Both ends of a program's input, output and errors: [i][0] is ours, [i][1] the program's; -1 for none. */
static int connect_program(const struct program *program, uid_t uid, int ends[3][2]) {
    if (program->tty) {
        int unlock = 0, number, terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
        char name[32];
        ends[0][0] = terminal;
        if (terminal < 0 || ioctl(terminal, TIOCSPTLCK, &unlock) || ioctl(terminal, TIOCGPTN, &number))
            return -1;
        snprintf(name, sizeof name, "/dev/pts/%d", number);
        ends[0][1] = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
        ends[1][0] = fcntl(terminal, F_DUPFD_CLOEXEC, 0);
        return ends[0][1] < 0 || ends[1][0] < 0 || fchown(ends[0][1], uid, -1) ? -1 : 0;
    }
    for (int i = 0; channel >= 0 && i < 3; i++) {
        int both[2];
        if (!i && !program->input)
            continue;
        if (pipe2(both, O_CLOEXEC))
            return -1;
        ends[i][0] = both[i == 0];
        ends[i][1] = both[i != 0];
    }
    return 0;
}

/* Starts a program; fds become its input, output and errors as the init sees them (-1: none). -1 and why on failure. */
pid_t spawn(const struct program *program, int fds[3], const char **why) {
    int ends[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    struct user user;
    if ((*why = find_user(program->user, &user)))
        return -1;
    pid_t pid = connect_program(program, user.uid, ends) ? -1 : fork();
    if (pid < 0) {
        *why = strerror(errno);
        close_all(&ends[0][0], 6);
        return -1;
    }
    if (pid) {
        for (int i = 0; i < 3; i++) {
            fds[i] = ends[i][0];
            close_all(&ends[i][1], 1);
            if (fds[i] >= 0)
                fcntl(fds[i], F_SETFL, O_NONBLOCK);
        }
        return pid;
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (program->tty)
        ioctl(ends[0][1], TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++) {
        int fd = program->tty ? ends[0][1] : ends[i][1];
        if (fd >= 0)
            dup2(fd, i);
        else if (i == 0)
            dup2(open("/dev/null", O_RDONLY), 0);
    }
    make_directories(program->workdir);
    if (setgroups(user.count, user.groups) || setgid(user.gid) || setuid(user.uid))
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
    if (!text)
        die("no memory");
    sprintf(text, "%s=%s", name, value);
    return text;
}

static void add_env(struct list *env, const struct records *records) {
    const char *key, *value;
    for (size_t at = 0; (value = next_record(records, &at, &key));)
        if (!strcmp(key, "env"))
            append(env, value);
}

/* The image's program with the build's and the slot's changes. */
void main_program(struct program *program) {
    static const char *const tls[][3] = {
        {"ROOTDISK_TLS_CA", "/.rootdisk/tls/ca.pem", "/run/rootdisk/tls/ca.pem"},
        {"ROOTDISK_TLS_CERT", "/.rootdisk/tls/client.pem", "/run/rootdisk/tls/cert.pem"},
        {"ROOTDISK_TLS_KEY", "", "/run/rootdisk/tls/key.pem"},
    };
    const struct records *from[] = {&process, &slot};
    const char *key, *value, *name, *workdir, *why;
    struct list entrypoint = {0}, command = {0}, env = {0};
    char host[256] = "";
    for (int i = 0; i < 2; i++) {
        int entry_seen = 0, command_seen = 0;
        if (i && find_record(&slot, "noentrypoint"))
            entrypoint.count = command.count = 0;
        for (size_t at = 0; (value = next_record(from[i], &at, &key));) {
            if (!strcmp(key, "entrypoint")) {
                if (i && !entry_seen++)
                    entrypoint.count = command.count = 0;
                append(&entrypoint, value);
            }
        }
        for (size_t at = 0; (value = next_record(from[i], &at, &key));)
            if (!strcmp(key, "cmd")) {
                if (i && !command_seen++)
                    command.count = 0;
                append(&command, value);
            }
    }
    for (size_t i = 0; i < command.count; i++)
        append(&entrypoint, command.items[i]);
    free(command.items);
    if (!entrypoint.count)
        die("the image names no program: give one after --");
    program->argv = entrypoint.items;
    name = find_record(&slot, "user");
    workdir = find_record(&slot, "workdir");
    program->user = name ? name : find_record(&process, "user");
    program->workdir = workdir ? workdir : find_record(&process, "workdir");
    if (!program->user)
        program->user = "";
    if (!program->workdir || !*program->workdir)
        program->workdir = "/";
    program->tty = find_record(&slot, "tty") && channel >= 0;
    program->input = find_record(&slot, "stdin") != NULL;

    struct user user;
    if ((why = find_user(program->user, &user)))
        die("%s", why);
    gethostname(host, sizeof host - 1);
    append(&env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    append(&env, joined("HOSTNAME", host));
    append(&env, joined("HOME", user.home));
    if (program->tty)
        append(&env, "TERM=xterm");
    for (int i = 0; i < 3; i++)
        for (int late = 1; late < 3; late++)
            if (*tls[i][late] && !access(tls[i][late], F_OK))
                append(&env, joined(tls[i][0], tls[i][late]));
    if (chown(tls[2][2], user.uid, user.gid) && errno != ENOENT)
        note("%s: %s", tls[2][2], strerror(errno));
    struct records built = {0};
    built.data = read_file("/.rootdisk/env", &built.length);
    for (size_t at = 0; built.data && at < built.length; at += strlen(built.data + at) + 1)
        append(&env, built.data + at);
    add_env(&env, &slot);
    keep_last(&env);
    program->env = env.items;
}

/* A program of an EXEC frame: its own command, the main program's environment and user if it says nothing else.

   argv and env are the caller's to free. */
void exec_program(struct program *program, const struct records *records) {
    const char *key, *value;
    struct list env = {0}, argv = {0};
    for (char **item = program->env; *item; item++)
        append(&env, *item);
    add_env(&env, records);
    keep_last(&env);
    for (size_t at = 0; (value = next_record(records, &at, &key));)
        if (!strcmp(key, "cmd"))
            append(&argv, value);
    program->env = env.items;
    program->argv = argv.items;
    if ((value = find_record(records, "user")))
        program->user = value;
    if ((value = find_record(records, "workdir")))
        program->workdir = value;
    program->tty = find_record(records, "tty") != NULL;
    program->input = find_record(records, "stdin") != NULL;
}
