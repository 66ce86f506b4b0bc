/** The lines of a routed veth pair, for both families and for addresses that are alone in their subnet. */
import { assertEquals } from "@std/assert";
import { type Addressed, hostSteps, podSteps } from "../../plugins/ptp/routed_veth.ts";
import type { Route } from "../../lib/cni/types.ts";
import { fakeCall } from "../fakes/call.ts";

const host = { name: "veth00000001", mac: "ea:97:ee:5e:43:1d" };
const pod = { name: "eth0", mac: "02:00:00:00:00:02", sandbox: "/run/netns/pod" };

function addressed(...texts: string[]): Addressed[] {
  return texts.map((text) => {
    const [address = "", gateway = ""] = text.split(" ");
    return { address, gateway, interface: 1 };
  });
}

const onHost = (ips: Addressed[], mtu = 0) => hostSteps(fakeCall({}), { host, pod, ips, mtu }).map((one) => one.text);
const inPod = (ips: Addressed[], routes: Route[] = []) =>
  podSteps(fakeCall({}), { interfaces: [host, pod], ips, routes }, ips).filter((one) => one.tool === "ip").map((one) =>
    one.text
  );

Deno.test("a routed pair: both ends named, the gateway on the host's, a route to the container", () => {
  assertEquals(onHost(addressed("10.1.0.2/24 10.1.0.1"), 1400), [
    "link add name veth00000001 address ea:97:ee:5e:43:1d mtu 1400 type veth peer name eth0 address 02:00:00:00:00:02 mtu 1400 netns /run/netns/pod",
    "link set dev veth00000001 alias cni:net1:ctr1:eth0 up",
    "addr add 10.1.0.1/32 dev veth00000001",
    "route replace 10.1.0.2/32 dev veth00000001 scope host",
  ]);
});

Deno.test("a routed pair with IPv6: the host's link-local address is usable at once", () => {
  assertEquals(onHost(addressed("fd01::2/64 fd01::1")).slice(1), [
    "addr add fe80::e897:eeff:fe5e:431d/64 dev veth00000001 nodad",
    "link set dev veth00000001 alias cni:net1:ctr1:eth0 up",
    "addr add fd01::1/128 dev veth00000001 nodad",
    "route replace fd01::2/128 dev veth00000001",
  ]);
});

Deno.test("a gateway of several addresses is on the host once", () => {
  const lines = onHost(addressed("10.1.0.2/24 10.1.0.1", "10.1.0.3/24 10.1.0.1"));
  assertEquals(lines.filter((line) => line.startsWith("addr add")), ["addr add 10.1.0.1/32 dev veth00000001"]);
  assertEquals(lines.filter((line) => line.startsWith("route")).length, 2);
});

Deno.test("in the container the subnet is behind the gateway, and routes follow", () => {
  assertEquals(inPod(addressed("10.1.0.2/24 10.1.0.1"), [{ dst: "0.0.0.0/0" }]), [
    "addr add 10.1.0.2/24 brd + dev eth0",
    "link set dev eth0 up",
    "route add 10.1.0.1/32 dev eth0 scope link src 10.1.0.2",
    "route del 10.1.0.0/24 dev eth0 proto kernel",
    "route add 10.1.0.0/24 via 10.1.0.1 dev eth0 src 10.1.0.2",
    "route prepend 0.0.0.0/0 via 10.1.0.1 dev eth0 scope global proto boot",
  ]);
});

const routesOf = (ips: Addressed[], routes: Route[] = []) =>
  inPod(ips, routes).filter((line) => line.startsWith("route"));

Deno.test("a /32 address needs the gateway alone; a /128 has a route of the kernel", () => {
  assertEquals(routesOf(addressed("10.1.0.2/32 10.9.0.1")), ["route add 10.9.0.1/32 dev eth0 scope link src 10.1.0.2"]);
  assertEquals(routesOf(addressed("fd01::2/128 fe80::1")), [
    "route add fe80::1/128 dev eth0 src fd01::2",
    "route del fd01::2/128 dev eth0 proto kernel",
    "route add fd01::2/128 via fe80::1 dev eth0 src fd01::2",
  ]);
});

Deno.test("two addresses of a subnet: its routes are set once, from the first", () => {
  assertEquals(routesOf(addressed("10.1.0.2/24 10.1.0.1", "10.1.0.3/24 10.1.0.1")), [
    "route add 10.1.0.1/32 dev eth0 scope link src 10.1.0.2",
    "route del 10.1.0.0/24 dev eth0 proto kernel",
    "route add 10.1.0.0/24 via 10.1.0.1 dev eth0 src 10.1.0.2",
  ]);
});

Deno.test("a configured route to the own subnet is there already, unless it says something else", () => {
  const ips = addressed("10.1.0.2/24 10.1.0.1");
  const last = (route: Route) => routesOf(ips, [route]).slice(3);
  assertEquals(last({ dst: "10.1.0.0/24" }), []);
  assertEquals(last({ dst: "10.1.0.0/24", gw: "10.1.0.1" }), []);
  assertEquals(last({ dst: "10.1.0.0/24", gw: "10.1.0.9" }), [
    "route prepend 10.1.0.0/24 via 10.1.0.9 dev eth0 scope global proto boot",
  ]);
  assertEquals(last({ dst: "10.1.0.0/24", table: 100 }), [
    "route prepend 10.1.0.0/24 via 10.1.0.1 dev eth0 scope global table 100 proto boot",
  ]);
  assertEquals(last({ dst: "10.1.0.0/24", priority: 7 }), [
    "route prepend 10.1.0.0/24 via 10.1.0.1 dev eth0 scope global metric 7 proto boot",
  ]);
});
