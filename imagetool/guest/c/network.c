/* The guest's network. QEMU's user network has fixed addresses, and passt gets the same, so no DHCP is needed. */
#include "guest.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <unistd.h>

struct in6_request { struct in6_addr address; uint32_t prefix; int index; }; /* struct in6_ifreq, linux/ipv6.h */

static int up(int fd, const char *name) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &request))
        return -1;
    request.ifr_flags |= IFF_UP | IFF_RUNNING;
    return ioctl(fd, SIOCSIFFLAGS, &request);
}

static struct sockaddr internet(const char *text) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct sockaddr out;
    inet_pton(AF_INET, text, &address.sin_addr);
    memcpy(&out, &address, sizeof out);
    return out;
}

/* The first interface with a device behind it, unlike lo. */
static int find_interface(char name[IFNAMSIZ]) {
    DIR *directory = opendir("/sys/class/net");
    int found = 0;
    for (struct dirent *entry; !found && directory && (entry = readdir(directory));) {
        char device[300];
        snprintf(device, sizeof device, "/sys/class/net/%s/device", entry->d_name);
        found = entry->d_name[0] != '.' && !access(device, F_OK);
        if (found)
            snprintf(name, IFNAMSIZ, "%.15s", entry->d_name);
    }
    if (directory)
        closedir(directory);
    return found;
}

/* The address of the network card. A device that cannot change it keeps its own: on this network nobody else has either. */
static void set_mac(int fd, const char *name, const char *text) {
    struct ifreq request = {0};
    unsigned char *bytes = (unsigned char *)request.ifr_hwaddr.sa_data;
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    if (sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", bytes, bytes + 1, bytes + 2, bytes + 3, bytes + 4, bytes + 5) == 6)
        ioctl(fd, SIOCSIFHWADDR, &request);
}

static int configure_interface(int fd, const char *name, const struct network *network) {
    struct ifreq request = {0};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    request.ifr_addr = internet(network->address);
    if (ioctl(fd, SIOCSIFADDR, &request))
        return -1;
    request.ifr_netmask = internet(network->netmask);
    route.rt_dst = internet("0.0.0.0");
    route.rt_genmask = internet("0.0.0.0");
    route.rt_gateway = internet(network->gateway);
    if (ioctl(fd, SIOCSIFNETMASK, &request) || up(fd, name))
        return -1;
    return *network->gateway && ioctl(fd, SIOCADDRT, &route) ? -1 : 0;
}

/* An IPv6 address for a name server of that kind. It is used at once: on this network nobody else can have it. */
static int add_ipv6(const char *name, const char *text) {
    char path[96];
    struct ifreq request = {0};
    struct in6_request address = {.prefix = 64};
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/accept_dad", name);
    int failed = fd < 0 || write_setting(path, "0") || inet_pton(AF_INET6, text, &address.address) != 1;
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    failed = failed || ioctl(fd, SIOCGIFINDEX, &request);
    address.index = request.ifr_ifindex;
    failed = failed || (ioctl(fd, SIOCSIFADDR, &address) && errno != EEXIST);
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return failed ? -1 : 0;
}

/* Addresses on lo that stand for names, 198.18.0.0/15 (RFC 2544): with the runner's network a program's connection to one goes to
   the runner. All of a network is local on lo, as with 127.0.0.0/8. */
static int add_names(int fd) {
    struct ifreq request = {.ifr_name = "lo:0"};
    request.ifr_addr = internet("198.18.0.1");
    if (ioctl(fd, SIOCSIFADDR, &request))
        return -1;
    request.ifr_netmask = internet("255.254.0.0");
    return ioctl(fd, SIOCSIFNETMASK, &request);
}

const struct network user_network = {1, "10.0.2.15", "255.255.255.0", "10.0.2.2", "10.0.2.3"};

void renew_mac(const char *mac) {
    char name[IFNAMSIZ];
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && find_interface(name))
        set_mac(fd, name, mac);
    if (fd >= 0)
        close(fd);
}

/* The IPv4 address in the first `length` characters. -1 if it is none. */
static int take_address(const char *text, size_t length, char out[16]) {
    struct in_addr address;
    if (length > 15)
        return -1;
    memcpy(out, text, length);
    out[length] = 0;
    return inet_pton(AF_INET, out, &address) == 1 ? 0 : -1;
}

/* ADDRESS/PREFIX[,GATEWAY[,RESOLVER]] of the kernel command line. */
static int parse_network(const char *text, struct network *network) {
    size_t whole = strcspn(text, ","), width = strcspn(text, "/");
    uint64_t prefix;
    if (width >= whole || take_address(text, width, network->address) ||
        parse_number(text + width + 1, whole - width - 1, 32, &prefix))
        return -1;
    struct in_addr mask = {htonl(prefix ? ~0U << (32 - prefix) : 0)};
    inet_ntop(AF_INET, &mask, network->netmask, sizeof network->netmask);
    *network->gateway = *network->resolver = 0;
    text += whole;
    if (*text && take_address(text + 1, strcspn(text + 1, ","), network->gateway))
        return -1;
    text += *text ? 1 + strcspn(text + 1, ",") : 0;
    return *text && take_address(text + 1, strlen(text + 1), network->resolver) ? -1 : 0;
}

int bring_up_lo(struct why *why) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), failed = 0;
    if (fd < 0 || up(fd, "lo"))
        failed = explain(why, "network lo: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
    return failed;
}

/* The slot's word, else that of the command line, else QEMU's user network; without a runner only if there is a card. */
int plan_network(struct guest *guest, struct why *why) {
    const char *mode = find_record(&guest->slot, "network");
    char name[IFNAMSIZ];
    guest->network = user_network;
    if (!mode)
        mode = guest->network_text;
    if (!mode)
        guest->network.is_wanted = !guest->channel.is_console || find_interface(name);
    else if (!strcmp(mode, "none"))
        guest->network.is_wanted = 0;
    else if (strcmp(mode, "user") && parse_network(mode, &guest->network))
        return explain(why, "rootdisk.network: %.80s is neither none, user nor ADDRESS/PREFIX[,GATEWAY[,DNS]]", mode);
    return 0;
}

int configure_network(const struct guest *guest, struct why *why) {
    const struct records *slot = &guest->slot;
    const char *ipv6 = find_record(slot, "ipv6"), *mac = find_record(slot, "mac");
    char name[IFNAMSIZ];
    int wanted = guest->network.is_wanted, failed = 0;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || up(fd, "lo") || (find_record(slot, "listen") && add_names(fd)))
        failed = explain(why, "network lo: %s", strerror(errno));
    else if (wanted && !find_interface(name))
        failed = explain(why, "the guest has no network device: is virtio_net in the kernel? --network none needs none");
    else if (wanted && mac)
        set_mac(fd, name, mac);
    if (!failed && wanted && (configure_interface(fd, name, &guest->network) || (ipv6 && add_ipv6(name, ipv6))))
        failed = explain(why, "network %s: %s", name, strerror(errno));
    if (fd >= 0)
        close(fd);
    return failed;
}
