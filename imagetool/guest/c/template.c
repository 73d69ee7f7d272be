/* A machine that is saved before it touches the disk, and goes on later as any number of sandboxes. Until then all is the same
   in every sandbox; what differs comes in RESUME and TIME. docs/layout-1.md, "Templates". */
#include "guest.h"
#include <stdlib.h>
#include <string.h>

/* Two le64: seconds since the epoch, and nanoseconds. */
int take_time(const struct records *payload, struct why *why) {
    uint64_t time[2];
    if (payload->length != sizeof time)
        return explain(why, "the runner sent a time that is none");
    memcpy(time, payload->data, sizeof time);
    return set_clock(time[0], time[1], why);
}

int wait_for_orders(struct guest *guest, struct why *why) {
    struct channel *channel = &guest->channel;
    struct records orders = {0}, time = {0};
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
    if (failed)
        return -1;
    send_frame(channel, RESUMED, 0, "", 0); /* the answer is the time, of now */
    if (wait_for(channel, TIME, &time, why) || take_time(&time, why))
        return -1;
    free(time.data);
    return 0;
}
