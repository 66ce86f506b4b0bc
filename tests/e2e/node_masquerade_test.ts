/** Masquerading of a node's pods in the kernel, by either firewall: set once, repaired, changed, removed. */
import { assertEquals, assertMatch } from "@std/assert";
import type { Run } from "../../lib/kernel/run.ts";
import { parsePrefix } from "../../lib/net/cidr.ts";
import { dropMasquerade, type Firewall, keepMasquerade, type Share } from "../../lib/node/masquerade.ts";
import { assertSameState, snapshot } from "./support/mod.ts";
import { nodeTest } from "./support/test.ts";

const share = (subnet: string, network: string): Share => ({
  subnet: parsePrefix(subnet)!,
  network: parsePrefix(network)!,
});
const SHARES = [share("10.5.3.0/24", "10.5.0.0/16"), share("fd05:0:0:3::/64", "fd05::/48")];

for (const firewall of ["nftables", "iptables"] as const satisfies readonly Firewall[]) {
  nodeTest(
    `a node's masquerading in ${firewall} is set once, repaired, changed and removed`,
    { needs: firewall === "nftables" ? ["nf_tables"] : ["iptables", "ip6tables"] },
    async ({ node }) => {
      const run: Run = async ({ argv, input }) => ({
        ...await node.exec([...argv], input ? { input: input.join("") } : {}),
        signal: null,
      });
      const rules = () =>
        firewall === "nftables"
          ? node.run("nft", "list", "table", "inet", "cnibox_node")
          : node.sh("iptables-save -t nat; ip6tables-save -t nat");
      if (firewall === "iptables") {
        await node.sh("iptables -t nat -A POSTROUTING -s 192.0.2.0/24 -j ACCEPT; ip6tables -t nat -L -n");
      }
      const before = await snapshot(node);
      assertEquals(await keepMasquerade(run, firewall, SHARES), true);
      const whole = await rules();
      assertMatch(whole, /10\.5\.3\.0\/24/);
      assertMatch(whole, /masquerade|MASQUERADE/);
      assertEquals(await keepMasquerade(run, firewall, SHARES), false);
      // Somebody empties the chain, or removes the way to it.
      const faults = firewall === "nftables"
        ? ["nft flush chain inet cnibox_node postrouting", "nft delete table inet cnibox_node"]
        : ["iptables -t nat -F CNIBOX-NODE", "ip6tables -t nat -F POSTROUTING"];
      for (const fault of faults) {
        await node.sh(fault);
        assertEquals(await keepMasquerade(run, firewall, SHARES), true, fault);
        const count = (text: string) => text.match(/masquerade|MASQUERADE/gi)?.length;
        assertEquals(count(await rules()), count(whole), fault);
        assertEquals(await keepMasquerade(run, firewall, SHARES), false, fault);
      }
      // Another subnet: nothing of the old one is left.
      assertEquals(await keepMasquerade(run, firewall, [share("10.5.4.0/24", "10.5.0.0/16"), SHARES[1]!]), true);
      assertEquals((await rules()).includes("10.5.3.0/24"), false);
      assertEquals(await dropMasquerade(run, firewall), true);
      assertEquals(await dropMasquerade(run, firewall), false);
      assertSameState(before, await snapshot(node));
    },
  );
}
