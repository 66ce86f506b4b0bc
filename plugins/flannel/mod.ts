/**
 * flannel: makes a configuration of what flanneld says about this node, and hands it to bridge or another plugin.
 * https://www.cni.dev/plugins/current/meta/flannel/
 *
 * Differs from the reference: state is kept for each attachment, written whole, and removed only when the delegate is
 * done; when it is lost or broken, DEL makes the configuration anew; CHECK, GC and STATUS reach the delegate; results
 * come in the version that was asked for, with `dns`; `args` reaches the delegate; a route is not repeated.
 */
import { confText, delegateConf, readSubnetEnv, type SubnetEnv } from "./conf.ts";
import { dropState, findState, statePaths, statesOf } from "./state.ts";
import { anyObject, anything, decode, decodeLeniently, lookup, maybeText, refine, text } from "../../lib/cni/decode.ts";
import { findPlugin, isForeign } from "../../lib/cni/delegate.ts";
import { all, CniError, code } from "../../lib/cni/error.ts";
import type { Call, ContainerCall, DelegateAnswer, NetworkCall, Plugin, Released } from "../../lib/cni/plugin.ts";
import { type JsonObject, type Result, since } from "../../lib/cni/types.ts";
import { readDns } from "../../lib/cni/version.ts";
import { collectDrafts, keepFile, removeFile } from "../../lib/kernel/state_file.ts";

const keys = {
  subnetFile: maybeText("the file that flanneld writes; /run/flannel/subnet.env when absent"),
  dataDir: text("/var/lib/cni/flannel", "folder for what the delegate was given"),
  delegate: anyObject("configuration of the delegate, without name and ipam; type is bridge when absent"),
  ipam: anyObject("configuration of its IPAM plugin; type is host-local when absent, ranges are replaced"),
  runtimeConfig: anyObject("what the runtime knows, handed on as it is"),
  args: anyObject("handed on as it is"),
  dns: refine(anything("resolver settings for results that have none"), readDns, undefined),
};
type Conf = ReturnType<typeof decodeConf>;

export const plugin: Plugin = {
  name: "flannel",
  kind: "meta",
  about: "hands the node's flannel subnet to bridge or another plugin",
  versions: since("0.1.0"),
  needs: [],
  keys,
  parse: parseForAdd,
  add,
  del,
  check,
  gc,
  status,
};

function parseForAdd(call: Call): Conf {
  return decodeConf(call, "failed to load flannel netconf file: failed to load netconf");
}

async function add(call: ContainerCall): Promise<Result> {
  const conf = parseForAdd(call);
  const env = subnetEnv(conf);
  for (const doubt of env.doubts) call.warn(doubt);
  const request = requestOf(conf, env);
  const text = confText(request);
  const known = findState(conf.dataDir, call);
  for (const file of Object.values(statePaths(conf.dataDir, call))) {
    const effect = { file, text, why: "DEL hands it to the delegate" };
    call.perform(effect, () => call.undo(keepFile(file, text)));
  }
  let asked = false;
  call.undo(async () => {
    // A living attachment that is added once more keeps what it has.
    if (asked && !known) await call.delegate(request.type, "DEL", { stdin: bytesOf(text) });
  });
  // What runs in this process takes back by itself what it did.
  asked = isForeign(call, request.type);
  const { result = {} } = await delegated(call, request.type, text);
  return conf.dns && !result.dns ? { ...result, dns: conf.dns } : result;
}

/** The delegate gets what it got at ADD, byte by byte; only when it is done is that forgotten. */
async function del(call: ContainerCall): Promise<Released | void> {
  const conf = decodeConf(call);
  const state = findState(conf.dataDir, call, call.warn);
  if (state?.conf) {
    const { released } = await call.delegate(state.conf.type, "DEL", { stdin: bytesOf(state.text) });
    const effect = { file: state.path, why: "the delegate is done" };
    call.perform(effect, () => dropState(conf.dataDir, call, state));
    return released;
  }
  if (state) call.warn(`failed to parse netconf: ${state.path} holds no configuration; it is made anew`);
  // Wiped or broken: as much as can be known. Nobody would come back for it, so failures are told and no more.
  let released: Released | undefined;
  try {
    const request = requestOf(conf, subnetEnv(conf));
    ({ released } = await call.delegate(request.type, "DEL", { stdin: bytesOf(confText(request)) }));
  } catch (error) {
    if (state) throw error;
    call.warn(`nothing is known of this attachment, and the delegate could not be asked: ${(error as Error).message}`);
  }
  call.perform(undefined, () => dropState(conf.dataDir, call, state));
  return released;
}

async function check(call: ContainerCall): Promise<void> {
  const conf = decodeConf(call, "failed to load netconf");
  const saved = findState(conf.dataDir, call)?.conf;
  const request = saved ?? requestOf(conf, subnetEnv(conf));
  const prevResult = lookup(call.config, "prevResult");
  const whole = { ...request, cniVersion: call.version, ...(prevResult ? { prevResult } : {}) };
  await call.delegate(request.type, "CHECK", { stdin: bytesOf(confText(whole)) });
}

/** Every configuration that attachments were made with is collected; then the files of those that are gone. */
async function gc(call: NetworkCall): Promise<void> {
  const { valid } = call;
  if (valid === undefined) return;
  const conf = decodeConf(call);
  const states = statesOf(conf.dataDir, call.network);
  collectDrafts(conf.dataDir);
  const requests = new Map<string, string>();
  const collect = (
    { runtimeConfig: _, args: __, prevResult: ___, ...request }: JsonObject & { readonly type: string },
  ) => {
    const attachments = { "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid };
    requests.set(confText({ ...request, cniVersion: call.version, ...attachments }), request.type);
  };
  for (const state of states) if (state.conf) collect(state.conf);
  try {
    collect(requestOf(conf, subnetEnv(conf)));
  } catch (error) {
    call.warn((error as Error).message);
  }
  const stale = states.filter(({ containerId, ifName }) =>
    !valid.some((one) => one.containerID === containerId && (ifName === undefined || one.ifname === ifName))
  );
  await all(...[...requests].map(([text, type]) => [() => call.delegate(type, "GC", { stdin: bytesOf(text) })]));
  const left = stale.filter(({ path }) => !removeFile(path)).map(({ path }) => path);
  if (left.length > 0) throw new CniError(code.io, `cannot remove ${left.join(", ")}`);
}

async function status(call: NetworkCall): Promise<void> {
  const conf = decodeConf(call, "failed to load netconf");
  const request = requestOf(conf, subnetEnv(conf, code.notAvailable));
  await delegated(call, request.type, confText(request), code.notAvailable);
}

/** flannel's own configuration; without words for a failure, whatever of it can be read. */
function decodeConf(call: Call, doing?: string) {
  const { dataDir, ...conf } = doing === undefined
    ? decodeLeniently(keys, call.config, call.warn)
    : decode(keys, call.config, doing);
  return { ...conf, dataDir: dataDir || keys.dataDir.absent, name: call.network, cniVersion: call.version };
}

function subnetEnv({ subnetFile }: Conf, failure?: number): SubnetEnv {
  return readSubnetEnv(subnetFile ?? "/run/flannel/subnet.env", failure);
}

/** The delegate's configuration; its type is a text, which the reference demands too. */
function requestOf(conf: Conf, env: SubnetEnv): JsonObject & { readonly type: string } {
  return delegateConf(conf, env) as JsonObject & { readonly type: string };
}

/**
 * Has the delegate do what this call is about. That there is no such plugin is told with the reference's words in
 * front.
 */
async function delegated(call: Call, type: string, text: string, failure?: number): Promise<DelegateAnswer> {
  try {
    return await call.delegate(type, call.verb, { stdin: bytesOf(text) });
  } catch (error) {
    try {
      findPlugin(type, call.path);
    } catch (missing) {
      const { code, msg, details } = missing as CniError;
      throw new CniError(failure ?? code, `failed to delegate ${call.verb.toLowerCase()}: ${msg}`, details);
    }
    throw error;
  }
}

function bytesOf(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}
