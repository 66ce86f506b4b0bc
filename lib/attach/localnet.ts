/**
 * `route_localnet`, which lets this host's 127.0.0.1:PORT be sent to a container, and what it must not open: with it, a
 * container that sends packets to 127.0.0.1 through its link would reach services that listen there.
 *
 * The guard is one rule for the whole host: nothing that comes in by another link than `lo` goes to 127.0.0.0/8. Replies
 * are not affected, since they are addressed to the host until connection tracking has translated them back. It is dead
 * without `route_localnet` (the kernel drops such packets by itself), so it stays, as the reference's shared chains do.
 *
 * Which links this plugin switched, is remembered as rules in a chain that no packet ever meets; when the last published
 * port of the host goes, they are switched back. Rules, unlike files, go where the ports go: away with a reboot.
 */
import { quoteWord, restore, ruleWords, savedTable, TableError, transaction } from "../kernel/iptables.ts";
import { nft, NftError, nftList } from "../kernel/nft.ts";
import type { Run } from "../kernel/run.ts";
import { readSysctl, writeSysctl } from "../kernel/sysctl.ts";

/** Which tool's tables hold guard and memory. */
export type LocalnetBackend = "iptables" | "nftables";

const GUARD = '! -i lo -d 127.0.0.0/8 -m comment --comment "CNI portfwd: 127.0.0.0/8 is for this host alone" -j DROP';
const MEMORY_CHAIN = "CNI-HOSTPORT-RESET";
const MEMORY_COMMENT = "CNI portfwd: route_localnet was 0";
const NFT_TABLE = "ip cni_hostport";
const NFT_GUARD = 'iifname != "lo" ip daddr 127.0.0.0/8 drop comment "CNI portfwd: 127.0.0.0/8 is for this host alone"';

/** Lines that only succeed while the guard stands: put before a transaction, they save a process of their own. */
export const GUARD_CHECK = transaction("raw", [`-C PREROUTING ${GUARD}`]);

const settingOf = (dev: string) => `net/ipv4/conf/${dev}/route_localnet`;

/** Makes sure of the guard. Throws when the kernel cannot have it: then `route_localnet` must stay off. */
export async function ensureGuard(host: Run, backend: LocalnetBackend): Promise<void> {
  if (backend === "iptables") {
    try {
      await restore(host, 4, GUARD_CHECK);
    } catch (error) {
      if (!(error instanceof TableError) || error.refusal === "locked") throw error;
      await restore(host, 4, transaction("raw", [`-I PREROUTING 1 ${GUARD}`]));
    }
    return;
  }
  const listing = await nftList(host, `chain ${NFT_TABLE} localnet`);
  if (listing && listing.rules.some(({ expr }) => JSON.stringify(expr).includes("127.0.0.0"))) return;
  await nft(
    host,
    [
      `add table ${NFT_TABLE}`,
      `add chain ${NFT_TABLE} localnet { type filter hook prerouting priority -300 ; }`,
      `add rule ${NFT_TABLE} localnet ${NFT_GUARD}`,
      "",
    ].join("\n"),
  );
}

/** Does the guard stand, in either backend? */
export async function isGuarded(host: Run): Promise<boolean> {
  try {
    await restore(host, 4, GUARD_CHECK);
    return true;
  } catch (error) {
    if (!(error instanceof TableError) || error.refusal === "locked") throw error;
  }
  try {
    const listing = await nftList(host, `chain ${NFT_TABLE} localnet`);
    return listing !== undefined && listing.rules.some(({ expr }) => JSON.stringify(expr).includes("127.0.0.0"));
  } catch (error) {
    if (error instanceof NftError) return false;
    throw error;
  }
}

/** Is `127.0.0.1` sent out through this link? */
export function isLocalnetOn(dev: string): boolean {
  return readSysctl(settingOf(dev)) === "1";
}

/** Switches the setting on, remembering that it was off. The link has to be guarded already. */
export async function switchLocalnetOn(host: Run, dev: string, options: {
  readonly backend: LocalnetBackend;
  /** False for links that go with the container. */
  readonly remember: boolean;
  /** Writes the setting; absent: to the kernel. */
  readonly write?: typeof writeSysctl;
}): Promise<void> {
  const { write = writeSysctl } = options;
  if (options.remember) await remember(host, dev, options.backend);
  write(settingOf(dev), "1");
}

/** Switches the setting off again: after a failed ADD. */
export function switchLocalnetOff(dev: string, write = writeSysctl): void {
  try {
    write(settingOf(dev), "0");
  } catch (error) {
    // The link is gone, and the setting with it.
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

async function remember(host: Run, dev: string, backend: LocalnetBackend): Promise<void> {
  if (backend === "nftables") {
    await nft(
      host,
      `add chain ${NFT_TABLE} localnet_reset\n` +
        `add rule ${NFT_TABLE} localnet_reset iifname "${dev}" comment "${MEMORY_COMMENT}"\n`,
    );
    return;
  }
  const rule = `-A ${MEMORY_CHAIN} -i ${quoteWord(dev)} -m comment --comment "${MEMORY_COMMENT}"`;
  try {
    await restore(host, 4, transaction("raw", [rule]));
  } catch (error) {
    if (!(error instanceof TableError) || error.refusal === "locked") throw error;
    await restore(host, 4, transaction("raw", [`-N ${MEMORY_CHAIN}`, rule]));
  }
}

/**
 * Switches back what this plugin switched on, once nothing is published any more. `anyLeft` looks again: a container that
 * came meanwhile has found the setting on, so it is put back.
 */
export async function resetLocalnet(
  host: Run,
  backend: LocalnetBackend,
  anyLeft: () => Promise<boolean>,
  write = writeSysctl,
): Promise<void> {
  const { devices, forget } = backend === "iptables" ? await remembered(host) : await rememberedNft(host);
  if (devices.length === 0) return;
  for (const dev of devices) switchLocalnetOff(dev, write);
  if (!(await anyLeft())) return await forget();
  for (const dev of devices) {
    try {
      write(settingOf(dev), "1");
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}

interface Memory {
  readonly devices: readonly string[];
  forget(): Promise<void>;
}

async function remembered(host: Run): Promise<Memory> {
  const table = await savedTable(host, 4, "raw");
  const rules = table?.chains.get(MEMORY_CHAIN) ?? [];
  const devices = rules.flatMap(({ text }) => {
    const words = ruleWords(text);
    const at = words.indexOf("-i");
    return at < 0 ? [] : words[at + 1] ?? [];
  });
  const lines = [...rules.map(({ text }) => `-D ${MEMORY_CHAIN} ${text}`), `-X ${MEMORY_CHAIN}`];
  const forget = async () => {
    try {
      await restore(host, 4, transaction("raw", lines));
    } catch (error) {
      if (!(error instanceof TableError) || error.refusal === "locked") throw error;
      // Another DEL has just done it.
    }
  };
  return { devices: [...new Set(devices)], forget };
}

async function rememberedNft(host: Run): Promise<Memory> {
  const listing = await nftList(host, `chain ${NFT_TABLE} localnet_reset`);
  const rules = listing?.rules ?? [];
  const devices = rules.flatMap(({ expr }) => /"right": ?"([^"]+)"/.exec(JSON.stringify(expr))?.[1] ?? []);
  const text = rules.map(({ handle }) => `delete rule ${NFT_TABLE} localnet_reset handle ${handle}\n`).join("");
  const forget = async () => {
    try {
      await nft(host, text);
    } catch (error) {
      if (!(error instanceof NftError)) throw error;
      // Another DEL has just done it.
    }
  };
  return { devices: [...new Set(devices)], forget };
}
