/* The guest's init: shared declarations. The contract is docs/layout-1.md. */
#ifndef ROOTDISK_GUEST_H
#define ROOTDISK_GUEST_H

#include "channel.h"
#include "files.h"
#include "log.h"
#include "program.h"
#include "records.h"
#include "users.h"

/* Of a machine without a runner, on the kernel command line: how it ends, and its network. docs/layout-1.md, "Without a runner". */
enum ending { BY_RUNNER, POWER_OFF, REBOOT };

/* The guest's IPv4 network; QEMU's user network if nothing else is said. */
struct network { int is_wanted; char address[16], netmask[16], gateway[16], resolver[16]; };

/* The state of one guest. `main` owns it, and every function gets what it needs of it. */
struct guest {
    struct log log;               /* where messages go: console and channel */
    struct records process, slot; /* of the disk; the slot's is empty if there is none */
    struct program program;       /* the main program */
    struct channel channel;
    const char *root_device, *root_flags;
    char *verity; /* what the command line says of the disk's dm-verity tree, or later RESUME; NULL if it is not used */
    char slot_digest[65];
    enum ending ending;
    const char *network_text; /* what the command line says of the network; NULL if nothing */
    struct network network;
    int is_template;              /* it stops before the disk is touched, to be saved and to go on as any sandbox */
};

/* When a module of /modules/load is loaded: before the disk is touched, for the disk and the network, for dm-verity, or as the
   slot asks. */
enum stage { EARLY, LATE, FOR_VERITY, BY_SLOT };

/* Set-up steps, in the order of a boot. Each returns 0, or -1 and why. */
int load_modules(const struct guest *, enum stage, struct why *);
int be_template(struct guest *, struct why *);
int enter_disk(struct guest *, struct why *);
const char *set_up_verity(char *spec, const char *disk, struct why *);
int mount_devices(const struct records *slot, struct why *);
int mount_all(const struct records *slot, struct why *);
int configure(struct guest *, struct why *);
int add_entropy(const char *hex, struct why *);
int set_clock(uint64_t seconds, uint64_t nanoseconds, struct why *);
int trust_authority(const struct records *slot, struct why *);
int take_time(const struct records *payload, double since, struct why *);
int become_another(const struct records *, struct why *); /* than the machine that was saved */
extern const struct network user_network; /* QEMU's, and that of passt */
void renew_mac(const char *mac);
int bring_up_lo(struct why *);
int plan_network(struct guest *, struct why *);
int configure_network(const struct guest *, struct why *);
int make_volumes(const struct records *process, struct why *);
int mount_volumes(const struct records *slot, struct why *);
int cover_etc(struct why *);
void renew_host_keys(struct guest *);
int copy_up(int from, int to, struct why *);

int mount_at(int place, const char *source, const char *type, unsigned long flags, const char *data);
int is_mount_point(int place);

void sha256_hex(const void *data, size_t length, char out[65]);
double now(void);
#endif
