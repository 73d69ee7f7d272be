/* A machine that is saved before it touches the disk, and goes on later as any number of sandboxes. Until then all is the same
   in every sandbox; what differs comes in RESUME and TIME. docs/layout-1.md, "Templates". */
#include "guest.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUS "/sys/bus/virtio/"

/* Two le64: seconds since the epoch, and nanoseconds, at the moment `since`. */
int take_time(const struct records *payload, double since, struct why *why) {
    uint64_t time[2];
    if (payload->length != sizeof time)
        return explain(why, "the runner sent a time that is none");
    memcpy(time, payload->data, sizeof time);
    if (time[1] > 999999999)
        return explain(why, "the runner sent a time that is none");
    time[1] += (uint64_t)((now() - since) * 1e9);
    return set_clock(time[0] + time[1] / 1000000000, time[1] % 1000000000, why);
}

static int wait_for_orders(struct guest *guest, struct why *why) {
    struct channel *channel = &guest->channel;
    struct records orders = {0};
    channel->fd = find_port("rootdisk", 3);
    if (channel->fd < 0)
        return explain(why, "a template needs the channel");
    send_frame(channel, PAUSED, 0, "", 0);
    if (wait_for(channel, RESUME, &orders, why))
        return -1;
    const char *digest = find_record(&orders, "slot"), *entropy = find_record(&orders, "entropy"), *verity = find_record(&orders, "verity");
    if (!digest || !entropy || strlen(digest) >= sizeof guest->slot_digest)
        return explain(why, "the runner gave no orders to a template");
    strcpy(guest->slot_digest, digest);
    if (verity && !(guest->verity = strdup(verity))) /* it stays */
        return explain(why, "no memory");
    guest->log.debug = !!find_record(&orders, "debug");
    int failed = add_entropy(entropy, why);
    explicit_bzero(orders.data, orders.length);
    free(orders.data);
    return failed;
}

static int put(const char *path, const char *text, struct why *why) {
    return write_setting(path, text) ? explain(why, "%s: %s", path, strerror(errno)) : 0;
}

static int is_device(const struct dirent *entry) { return *entry->d_name != '.'; }

/* Gives the devices that have come while drivers_autoprobe was 0 to their drivers, in the order of their numbers, as a cold boot
   does: the first disk is /dev/vda. A directory has no order. */
static int find_drivers(struct why *why) {
    struct why ignored; /* what is missing for want of a driver says so itself */
    struct dirent **devices;
    int count = scandir(BUS "devices", &devices, is_device, versionsort);
    if (count < 0)
        return explain(why, BUS "devices: %s", strerror(errno));
    int failed = put(BUS "drivers_autoprobe", "1", why);
    for (int i = 0; i < count; i++) {
        if (!failed)
            put(BUS "drivers_probe", devices[i]->d_name, &ignored);
        free(devices[i]);
    }
    free(devices);
    return failed;
}

/* Does what is the same in every sandbox. Loads the drivers of disk and network, and dm-verity if there will be a tree, which takes
   a while, but lets them have their devices only in the machine that goes on: they read sizes, first blocks and addresses, which differ. */
int be_template(struct guest *guest, struct why *why) {
    struct records time = {0};
    if (put(BUS "drivers_autoprobe", "0", why) || load_modules(guest, LATE, why) || load_modules(guest, FOR_VERITY, why) ||
        mount_devices(&guest->slot, why) || bring_up_lo(why) || wait_for_orders(guest, why))
        return -1;
    double asked = now(); /* the answer is the time of this moment, and comes while the drivers work */
    send_frame(&guest->channel, RESUMED, 0, "", 0);
    if (find_drivers(why) || wait_for(&guest->channel, TIME, &time, why))
        return -1;
    int failed = take_time(&time, asked, why);
    free(time.data);
    return failed;
}
