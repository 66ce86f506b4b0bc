/** The configuration of `cnibox node`: one JSON file. */
import {
  anyObject,
  FieldError,
  fields,
  flag,
  list,
  maybeInteger,
  maybeText,
  object,
  refine,
  text,
} from "../cni/decode.ts";
import { badConfig } from "../cni/error.ts";
import type { JsonObject } from "../cni/types.ts";
import { badValue, etcdKeys, keyPrefix, kubernetesKeys } from "../ipam/cluster_conf.ts";
import { type Address, parseAddress } from "../net/cidr.ts";
import { isLinkName } from "../net/link_name.ts";
import { readObject } from "./records.ts";

/** Where the file is unless another is named. */
export const CONF_FILE = "/etc/cnibox/node.json";
/** flannel's key prefix. */
const FLANNEL_PREFIX = "/coreos.com/network";

const MTU_RANGE = { min: 576, max: 65_535 };

const flannelKeys = {
  ...etcdKeys,
  prefix: refine(text(FLANNEL_PREFIX, "what all keys begin with"), keyPrefix, FLANNEL_PREFIX),
};

/** The file's table of keys. */
export const nodeKeys = {
  node: maybeText("name of this node; absent: NODENAME of the environment, else the host name"),
  store: object({
    etcd: object(flannelKeys, "an etcd, 3.4 or later, in flannel's layout"),
    kubernetes: object(kubernetesKeys, "the Node objects of a Kubernetes API"),
  }, "where nodes tell each other about themselves"),
  network: anyObject(
    "flannel's net-conf.json: the network of all nodes and the backend; in etcd the key `config` says it",
  ),
  interface: refine(
    maybeText("link that leads to the other nodes; absent: the one of the default route"),
    linkName,
    undefined,
  ),
  publicIPs: list(refine(text("", "an address"), address, undefined), "addresses that other nodes reach this one by"),
  ipMasq: flag(true, "masquerade what pods send to the world outside of the network"),
  mtu: refine(
    maybeInteger("largest packet of pods; absent: worked out from the link and the backend", MTU_RANGE),
    mtu,
    undefined,
  ),
  subnetFile: text("/run/flannel/subnet.env", "file that the flannel plugin reads; empty: none is written"),
  conflist: object({
    file: text("/etc/cni/net.d/10-cnibox.conflist", "where runtimes find it"),
    content: anyObject("the list; absent: flannel, then portmap"),
  }, "a network list, written when the network works; absent: none is"),
};

/** What the file says. */
export interface NodeConf extends Omit<ReturnType<typeof readKeys>, "publicIPs" | "node"> {
  readonly node: string;
  readonly publicIps: readonly Address[];
}

const readKeys = (source: JsonObject) => fields(nodeKeys, source);

/** Reads the file's text. Throws {@linkcode CniError} naming key and value. */
export function parseNodeConf(text: string, where: string): NodeConf {
  const source = readObject(text, where, "the file is one JSON object");
  const known = Object.keys(nodeKeys);
  const other = Object.keys(source).find((key) => !known.some((one) => one.toLowerCase() === key.toLowerCase()));
  if (other !== undefined) {
    throw badConfig(`${where}: unknown key ${JSON.stringify(other)}`, `known keys: ${known.join(", ")}`);
  }
  try {
    const { publicIPs, node, ...rest } = readKeys(source);
    const { etcd, kubernetes } = rest.store ?? {};
    if ((etcd === undefined) === (kubernetes === undefined)) {
      throw badConfig(
        `${where}: "store" names ${etcd === undefined ? "neither etcd nor kubernetes" : "both etcd and kubernetes"}`,
        'write "store": {"etcd": {"endpoints": ["http://10.0.0.1:2379"]}} or {"kubernetes": {}}',
      );
    }
    if (kubernetes && rest.network === undefined) {
      throw badConfig(
        `${where}: "network" is missing`,
        'write "network": {"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}, the cluster\'s pod network',
      );
    }
    return { ...rest, node: node ?? (Deno.env.get("NODENAME") || Deno.hostname()), publicIps: publicIPs ?? [] };
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    throw badConfig(`${where}: ${error.msg}`, error.advice);
  }
}

function address(value: string, path: string): Address {
  const found = parseAddress(value);
  if (found) return found;
  throw badValue(value, path, "write an address without a prefix length");
}

function linkName(value: string | undefined, path: string): string | undefined {
  if (value === undefined || isLinkName(value)) return value;
  throw badValue(value, path, "write the name of a link of this node");
}

function mtu(value: number | undefined, path: string): number | undefined {
  const { min, max } = MTU_RANGE;
  if (value === undefined || (value >= min && value <= max)) return value;
  throw badValue(value, path, `it is from ${min} to ${max} bytes`);
}
