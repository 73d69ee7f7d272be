/* The guest's init: shared declarations. The contract is docs/layout-1.md. */
#ifndef ROOTDISK_INIT_H
#define ROOTDISK_INIT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { READY = 1, OUT, ERR, EXIT, ERROR, LOG, IN = 16, RESIZE, SIGNAL, EXEC, ACK, STOP, CREDIT, HOLD };
enum { VERSION = 2, WINDOW = 256 << 10, FRAME_MAX = 256 << 10, SLOT_MAX = 1 << 24, SESSIONS = 256, GROUPS = 64 };

/* key=value records, each ended by NUL. */
struct records { char *data; size_t length; };

/* What a program is run with; strings lie in the records they came from. */
struct program {
    char **argv;
    char **env;
    const char *user, *workdir;
    int tty, input;
};

/* Whom a program becomes. */
struct user {
    uid_t uid;
    gid_t gid, groups[GROUPS];
    int count;
    char home[4096];
};

extern int debug, channel;            /* channel: the port's descriptor, -1 without */
extern struct records process, slot;  /* of the disk; the slot's is empty when there is none */

void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
double now(void);
void power_off(void) __attribute__((noreturn));

const char *next_record(const struct records *, size_t *at, const char **key);
const char *find_record(const struct records *, const char *key);
char *read_file(const char *path, size_t *length);
void make_directories(const char *path);
int write_file(const char *path, const char *data, size_t length, mode_t mode);
void sha256_hex(const void *data, size_t length, char out[65]);

void load_modules(int first);
void mount_all(void);
void mount_volumes(void);
void renew_host_keys(void);
void configure(void);
int find_port(double timeout);
const char *find_user(const char *text, struct user *);

pid_t spawn(const struct program *, int fds[3], const char **why);
void main_program(struct program *);
void exec_program(struct program *, const struct records *);
void serve(struct program *) __attribute__((noreturn));
void hold_disk(int held);
void send_frame(int type, int session, const void *data, size_t length);
#endif
