/** Which versions of the protocol a plugin that is another program speaks: the reference library's VERSION probe. */
import { runForeign } from "./foreign.ts";
import { CniError, code, goQuote } from "./error.ts";
import { NEWEST } from "./types.ts";

/** What the probe needs. */
export interface Probe {
  /** What the plugin finds in its environment besides the protocol's variables. */
  readonly env: Readonly<Record<string, string>>;
  /** How long it may take, in milliseconds. */
  readonly limitMs?: number | undefined;
}

/** Versions that the plugin names. */
export async function foreignVersions(file: string, { env, limitMs }: Probe): Promise<readonly string[]> {
  const dummy = "dummy";
  let stdout: string;
  try {
    ({ stdout } = await runForeign(file, {
      verb: "VERSION",
      env: { ...env, CNI_NETNS: dummy, CNI_IFNAME: dummy, CNI_PATH: dummy, CNI_CONTAINERID: "", CNI_ARGS: "" },
      stdin: new TextEncoder().encode(`{"cniVersion":"${NEWEST}"}`),
      version: "",
      limitMs: limitMs ?? 10_000,
    }));
  } catch (error) {
    if (error instanceof CniError && error.msg === "unknown CNI_COMMAND: VERSION") return ["0.1.0"];
    throw error;
  }
  let answer: { cniVersion?: unknown; supportedVersions?: unknown };
  try {
    answer = JSON.parse(stdout) ?? {};
  } catch (error) {
    throw new CniError(code.decode, `decoding version info: ${(error as Error).message}`);
  }
  const { cniVersion, supportedVersions } = answer;
  if (typeof cniVersion !== "string" || cniVersion === "") {
    throw new CniError(code.decode, "decoding version info: missing field cniVersion");
  }
  if (Array.isArray(supportedVersions) && supportedVersions.length > 0) return supportedVersions.map(String);
  if (cniVersion === "0.2.0") return ["0.1.0", "0.2.0"];
  throw new CniError(code.decode, "decoding version info: missing field supportedVersions");
}

/** Refuses a plugin that does not speak a version, in the words in which it would refuse by itself. */
export async function checkSpoken(file: string, call: Probe & { type: string; version: string }): Promise<void> {
  const wanted = call.version === "" ? "0.1.0" : call.version;
  const versions = await foreignVersions(file, call);
  if (versions.includes(wanted)) return;
  throw new CniError(
    code.incompatibleVersion,
    "incompatible CNI versions",
    `config is ${goQuote(wanted)}, ${file} supports [${versions.map(goQuote).join(" ")}]`,
  );
}
