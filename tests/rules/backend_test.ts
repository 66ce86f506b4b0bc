/** The lifecycle of rules on a packet filter that executes transactions, for every subject in both backends. */
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import { parseSave } from "../../lib/kernel/iptables.ts";
import { nftList } from "../../lib/kernel/nft.ts";
import { apply } from "../../lib/kernel/plan.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { parseAddress, parsePrefix } from "../../lib/net/cidr.ts";
import {
  type Backend,
  type Backends,
  bothBackends,
  type Listing,
  removeRules,
  ruleSteps,
  type Subject,
} from "../../lib/rules/backend.ts";
import { acceptance, type Forwarded, forwarding } from "../../lib/rules/forwarding.ts";
import { hostPorts, type Published, unknownPorts } from "../../lib/rules/host_ports.ts";
import { collectHostPorts } from "../../lib/rules/host_ports_iptables.ts";
import { masquerading } from "../../lib/rules/masquerade.ts";
import { collectMasquerade } from "../../lib/rules/masquerade_gc.ts";
import type { Masquerading } from "../../lib/rules/masquerade_nft.ts";
import { checkRules, isOwned, statusOfRules } from "../../lib/rules/rule_upkeep.ts";
import { type FakeFirewall, fakeFirewall } from "../fakes/firewall.ts";
import { fakeNetworkCall } from "../fakes/call.ts";
import { RULE_TOOLS, withTools } from "../fakes/tools.ts";

const attachment = (containerId: string) => ({ network: "net1", containerId, ifName: "eth0" });
const DUAL = ["10.22.0.2/16", "fd00:22::2/64"].map((one) => parsePrefix(one)!);
const ONE = [parsePrefix("10.22.0.2/16")!];
const TWO = [parsePrefix("10.22.0.3/16")!];

const masq = (id: string, prefixes = ONE): Masquerading => ({ owner: attachment(id), prefixes });
const ports = (id: string, targets = ONE, hostPort = 8080): Published => ({
  ports: {
    ...unknownPorts(attachment(id)),
    mappings: [{ hostPort, containerPort: 80, protocol: "tcp", hostIP: "" }],
  },
  targets,
});
const accepted = (id: string, prefixes = ONE): Forwarded =>
  acceptance(attachment(id), prefixes.map(({ address }) => address), "CNI-ADMIN");

interface Case<Want> {
  readonly name: string;
  readonly subject: Subject<Want>;
  want(id: string, prefixes?: typeof ONE): Want;
}

/** Runs the work for each subject, whose types it does not mix. */
const CASES = [
  <T>(work: <W>(one: Case<W>) => T) => work({ name: "masquerade", subject: masquerading, want: masq }),
  <T>(work: <W>(one: Case<W>) => T) => work({ name: "host ports", subject: hostPorts, want: ports }),
  <T>(work: <W>(one: Case<W>) => T) => work({ name: "forwarding", subject: forwarding, want: accepted }),
];

interface FakeCall {
  readonly host: Run;
  readonly pod: Run;
  readonly undos: (() => unknown)[];
  undo(job: () => unknown): void;
}

function callOn({ host }: Pick<FakeFirewall, "host">): FakeCall {
  const undos: (() => unknown)[] = [];
  const pod: Run = () => Promise.resolve({ code: 0, signal: null, stdout: "[]", stderr: "" });
  return { host, pod, undos, undo: (job) => undos.push(job) };
}

const add = <W>(call: FakeCall, subject: Subject<W>, want: W, backends: Backends) =>
  apply([ruleSteps(subject, want, backends)], call);

async function listing({ host }: FakeFirewall): Promise<Listing> {
  const saved = async (tool: string) => parseSave((await host({ argv: [`${tool}-save`] })).stdout);
  return {
    tables: { 4: await saved("iptables"), 6: await saved("ip6tables") },
    nft: (await nftList(host, "ruleset"))!,
  };
}

for (const backend of ["iptables", "nftables"] satisfies Backend[]) {
  for (const each of CASES) {
    each(({ name, subject, want }) => {
      const title = `${name} with ${backend}`;
      const order = bothBackends(backend);

      Deno.test(`${title}: what is added is there, is owned, and goes without the others' rules`, async () => {
        await withTools(RULE_TOOLS, async () => {
          const firewall = fakeFirewall();
          const call = callOn(firewall);
          await add(call, subject, want("a", DUAL), [backend]);
          const alone = await firewall.dump();
          await add(call, subject, want("b", TWO), [backend]);
          await checkRules(call, subject, want("a", DUAL), order);
          await checkRules(call, subject, want("b", TWO), order);
          assert(isOwned(subject, await listing(firewall), want("b", TWO)));
          assertEquals(isOwned(subject, await listing(firewall), want("c", [parsePrefix("10.22.0.4/16")!])), false);
          await removeRules(call, subject, want("b", TWO), { backends: order });
          assertEquals(await firewall.dump(), alone);
          assertEquals(isOwned(subject, await listing(firewall), want("b", TWO)), false);
          await assertRejects(() => checkRules(call, subject, want("b", TWO), order), CniError);
          await checkRules(call, subject, want("a", DUAL), order);
        });
      });

      Deno.test(`${title}: removal finds them whatever is configured, and removes them once`, async () => {
        await withTools(RULE_TOOLS, async () => {
          const firewall = fakeFirewall();
          const call = callOn(firewall);
          await add(call, subject, want("b", TWO), [backend]);
          const without = await firewall.dump();
          await add(call, subject, want("a"), [backend]);
          for (let i = 0; i < 2; i++) {
            const other = backend === "iptables" ? "nftables" : "iptables";
            await removeRules(call, subject, want("a"), { backends: bothBackends(other) });
            assertEquals(await firewall.dump(), without);
          }
        });
      });

      Deno.test(`${title}: undo leaves what was there before`, async () => {
        await withTools(RULE_TOOLS, async () => {
          const firewall = fakeFirewall();
          await add(callOn(firewall), subject, want("b", TWO), [backend]);
          const before = await firewall.dump();
          const call = callOn(firewall);
          await add(call, subject, want("a"), [backend]);
          for (const undo of call.undos.toReversed()) await undo();
          assertEquals(await firewall.dump(), before);
        });
      });

      Deno.test(`${title}: a change whose answer is lost is undone`, async () => {
        await withTools(RULE_TOOLS, async () => {
          const firewall = fakeFirewall();
          await add(callOn(firewall), subject, want("b", TWO), [backend]);
          const before = await firewall.dump();
          let isLost = false;
          const call = callOn({
            host: async (command) => {
              const output = await firewall.host(command);
              if (isLost || command.input === undefined || await firewall.dump() === before) return output;
              isLost = true;
              throw new Error("killed");
            },
          });
          await assertRejects(() => add(call, subject, want("a"), [backend]), Error, "killed");
          assert(isLost);
          for (const undo of call.undos.toReversed()) await undo();
          assertEquals(await firewall.dump(), before);
        });
      });
    });
  }
}

for (const each of CASES) {
  each(({ name, subject, want }) => {
    Deno.test(`${name}: nft serves where iptables does not work, unless iptables is configured`, async () => {
      await withTools(RULE_TOOLS, async () => {
        const firewall = fakeFirewall({ broken: ["iptables"] });
        const call = callOn(firewall);
        await assertRejects(() => add(call, subject, want("a"), ["iptables"]), CniError, "unable to initialize");
        assertEquals(await firewall.dump(), "");
        await add(call, subject, want("a"), ["iptables", "nftables"]);
        assertStringIncludes(await firewall.dump(), "10.22.0.2");
        await checkRules(call, subject, want("a"), ["iptables", "nftables"]);
        await removeRules(call, subject, want("a"), { backends: bothBackends(undefined) });
        assertEquals((await firewall.dump()).includes("10.22.0.2"), false);
      });
    });

    Deno.test(`${name}: where neither works ADD fails, removal succeeds, STATUS says so`, async () => {
      await withTools(RULE_TOOLS, async () => {
        const call = callOn(fakeFirewall({ broken: ["iptables", "nft"] }));
        await assertRejects(() => add(call, subject, want("a"), ["iptables", "nftables"]), CniError);
        await removeRules(call, subject, want("a"), { backends: bothBackends(undefined) });
        const error = await assertRejects(() => statusOfRules(call, undefined, "it"), CniError, "neither iptables nor");
        assertEquals(error.code, 50);
      });
    });
  });
}

Deno.test("a transaction that another process got in the way of is decided anew", async () => {
  await withTools(RULE_TOOLS, async () => {
    let others = 2;
    const firewall = fakeFirewall({
      // Somebody deletes the very rules that were listed, one of them before each transaction.
      before: async ({ put }, text) => {
        const [, handle] = /handle (\d+)$/m.exec(text) ?? [];
        if (handle === undefined || others === 0) return;
        others--;
        await put("nft", `delete rule inet cni_plugins_masquerade masq_checks handle ${handle}\n`);
      },
    });
    const call = callOn(firewall);
    const three = ["10.22.0.2/16", "10.22.0.3/16", "10.22.0.4/16"].map((one) => parsePrefix(one)!);
    await add(call, masquerading, masq("a", three), ["nftables"]);
    firewall.commands.length = 0;
    await removeRules(call, masquerading, masq("a", three), { backends: ["nftables"] });
    assertEquals(firewall.commands.filter((one) => one === "nft -f -").length, 3);
    assertEquals((await firewall.dump()).includes("saddr 10.22"), false);
  });
});

Deno.test("a transaction that is refused again and again fails after five tries", async () => {
  await withTools(RULE_TOOLS, async () => {
    const firewall = fakeFirewall();
    await add(callOn(firewall), masquerading, masq("a"), ["iptables"]);
    let writes = 0;
    const call = callOn({
      host: async (command) => {
        if (command.input === undefined) return await firewall.host(command);
        writes++;
        return { code: 1, signal: null, stdout: "", stderr: "iptables-restore: line 2 failed.\n" };
      },
    });
    const error = await assertRejects(
      () => removeRules(call, masquerading, masq("a"), { backends: ["iptables"] }),
      CniError,
    );
    assertStringIncludes(error.msg, "line 2 failed");
    assertEquals(writes, 5);
  });
});

Deno.test("the shared rules that another ADD makes meanwhile are not made twice", async () => {
  await withTools(RULE_TOOLS, async () => {
    let isFirst = true;
    const firewall = fakeFirewall({
      before: async (own) => {
        if (!isFirst) return;
        isFirst = false;
        await add(callOn(own), hostPorts, ports("b", TWO, 9090), ["iptables"]);
      },
    });
    const call = callOn(firewall);
    await add(call, hostPorts, ports("a"), ["iptables"]);
    const jumps = (await firewall.dump()).split("\n").filter((line) =>
      /^-A (PREROUTING|OUTPUT) .*CNI-HOSTPORT-DNAT/.test(line)
    );
    assertEquals(jumps.length, 2);
    await checkRules(call, hostPorts, ports("a"), ["iptables"]);
    await checkRules(call, hostPorts, ports("b", TWO, 9090), ["iptables"]);
  });
});

Deno.test("an interface's removal keeps the masquerading of the container's other interface", async () => {
  await withTools(RULE_TOOLS, async () => {
    const firewall = fakeFirewall();
    const eth1 = { ifname: "eth1", addr_info: [{ family: "inet", local: "10.23.0.2", prefixlen: 16 }] };
    const pod: Run = () => Promise.resolve({ code: 0, signal: null, stdout: JSON.stringify([eth1]), stderr: "" });
    const call = { ...callOn(firewall), pod };
    const second = { owner: { ...attachment("a"), ifName: "eth1" }, prefixes: [parsePrefix("10.23.0.2/16")!] };
    await add(call, masquerading, second, ["iptables"]);
    const before = await firewall.dump();
    await add(call, masquerading, masq("a"), ["iptables"]);
    await checkRules(call, masquerading, second, ["iptables"]);
    await removeRules(call, masquerading, masq("a"), { backends: bothBackends(undefined) });
    await checkRules(call, masquerading, second, ["iptables"]);
    assertEquals((await firewall.dump()).includes("10.22.0.2"), false);
    assertStringIncludes(before, "10.23.0.2/32");
  });
});

Deno.test("collection removes the rules of containers that are picked, and no others", async () => {
  await withTools(RULE_TOOLS, async () => {
    const firewall = fakeFirewall();
    const call = callOn(firewall);
    await add(call, masquerading, masq("b", TWO), ["iptables"]);
    await add(call, hostPorts, ports("b", TWO, 9090), ["iptables"]);
    await add(call, masquerading, masq("b", TWO), ["nftables"]);
    const before = await firewall.dump();
    await add(call, masquerading, masq("a"), ["iptables"]);
    await add(call, hostPorts, ports("a"), ["iptables"]);
    await add(call, masquerading, masq("a"), ["nftables"]);
    await collectMasquerade(fakeNetworkCall({}, { ...call, network: "net1" }), [{ containerID: "b", ifname: "eth0" }]);
    await collectHostPorts(call, 4, ({ containerId }) => containerId === "a");
    assertEquals(await firewall.dump(), before);
  });
});

Deno.test("a comment that does not fit its chain's name proves nothing: the rules stay", async () => {
  await withTools(RULE_TOOLS, async () => {
    const firewall = fakeFirewall();
    const lie = '-m comment --comment "name: \\"net1\\" id: \\"a\\"" -j OTHERS-chain';
    await firewall.put("iptables", `*nat\n-N OTHERS-chain\n-A POSTROUTING -s 10.22.0.2/32 ${lie}\nCOMMIT\n`);
    const before = await firewall.dump();
    await collectMasquerade(fakeNetworkCall({}, { ...callOn(firewall), network: "net1" }), []);
    assertEquals(await firewall.dump(), before);
  });
});

Deno.test("forwarding puts bridges that are kept apart in front of what accepts, whoever came first", async () => {
  await withTools(RULE_TOOLS, async () => {
    const firewall = fakeFirewall();
    const call = callOn(firewall);
    const apart: Forwarded = { ...accepted("a"), policy: "same-bridge", bridge: "br0" };
    await add(call, forwarding, accepted("b", TWO), ["iptables"]);
    await add(call, forwarding, apart, ["iptables"]);
    const targets = (await firewall.dump()).split("\n").filter((line) => line.startsWith("-A FORWARD "))
      .map((line) => line.split(" ").at(-1));
    assertEquals(targets, ["CNI-ISOLATION-STAGE-1", "CNI-FORWARD"]);
    await checkRules(call, forwarding, apart, ["iptables"]);
    // An address of another container does not come with it.
    const other = { ...apart, addresses: [parseAddress("10.22.0.9")!] };
    await assertRejects(() => checkRules(call, forwarding, other, ["iptables"]), CniError, "10.22.0.9");
  });
});
