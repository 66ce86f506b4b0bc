/**
 * Which container an address is for, where rules cannot say: iptables and firewalld keep bare addresses. One small file
 * per address below /run, gone with a reboot as the rules are. It is an aid: DEL without a result and GC find addresses
 * by it; with a result DEL does not need it.
 */
import { isObject } from "../../lib/cni/decode.ts";
import { keepFile, namesIn, readFileIfThere, removeDrafts, removeFile } from "../../lib/kernel/state_file.ts";
import { type Address, formatAddress, parseAddress } from "../../lib/net/cidr.ts";
import { type Attachment, nftAttachmentHash, sameAttachment } from "../../lib/net/name.ts";

const FOLDER = "/run/cnibox/firewall";
/** Where runtimes keep results by the CNI library, unless they are told otherwise. */
const RESULTS = "/var/lib/cni/results";

/** The file of an address. */
export function ownerPath(address: Address): string {
  return `${FOLDER}/${formatAddress(address)}`;
}

/** What is in it. */
export function ownerText({ network, containerId, ifName }: Attachment): string {
  return JSON.stringify({ network, containerId, ifName });
}

/** Drafts of notes go by their owner: a DEL without a result does not know the address that its ADD was killed with. */
const draftsOf = (owner: Attachment) => `${FOLDER}/${nftAttachmentHash(owner)}`;

/** Removes what an ADD of this attachment left that was killed while it wrote a note. */
export function dropOwnerDrafts(owner: Attachment): void {
  removeDrafts(draftsOf(owner));
}

/** Notes the owner; returns how that is taken back. Throws what the system says. */
export function noteOwner(address: Address, owner: Attachment): () => void {
  return keepFile(ownerPath(address), ownerText(owner), { as: draftsOf(owner) });
}

/** An address that was noted, and for whom. */
export interface Owned {
  readonly address: Address;
  readonly owner: Attachment;
}

/** All that is noted; what cannot be read is skipped. */
export function ownedAddresses(): Owned[] {
  return namesIn(FOLDER).flatMap((name) => {
    const address = parseAddress(name);
    const owner = readOwner(name);
    return address && owner ? [{ address, owner }] : [];
  });
}

function readOwner(name: string): Attachment | undefined {
  try {
    const source: unknown = JSON.parse(readFileIfThere(`${FOLDER}/${name}`) ?? "");
    if (!isObject(source)) return undefined;
    const { network, containerId, ifName } = source;
    if (typeof network !== "string" || typeof containerId !== "string" || typeof ifName !== "string") return undefined;
    return { network, containerId, ifName };
  } catch {
    return undefined;
  }
}

/** Forgets an address, if it is still noted for this owner. Returns whether it is not noted for him any more. */
export function forgetOwner(address: Address, owner: Attachment): boolean {
  const name = formatAddress(address);
  const noted = readOwner(name);
  return !noted || !sameAttachment(noted, owner) || removeFile(`${FOLDER}/${name}`);
}

/** Does a runtime remember an attachment, other than this one, that has the address? */
export function isRemembered(address: Address, { network, containerId, ifName }: Attachment): boolean {
  const own = `${network}-${containerId}-${ifName}`;
  const text = new RegExp(`"${formatAddress(address).replaceAll(".", "\\.")}/\\d+"`);
  return namesIn(RESULTS).filter((name) => name !== own).some((name) => {
    try {
      return text.test(readFileIfThere(`${RESULTS}/${name}`) ?? "");
    } catch {
      return false;
    }
  });
}
