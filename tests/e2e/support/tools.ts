/** Tools of a node's own in front of the machine's: slow ones, failing ones. Only calls that ask for them find them. */
import type { Node } from "./node.ts";

/** Where stand-ins lie in a node. */
export const STAND_INS = "/run/standin";
/** The machine's own first folder of tools, for calls that find stand-ins there. */
const REAL = "/run/real-sbin";

/**
 * Constant text: in a mount namespace of its own the stand-ins lie over the folder that cnibox and the reference search
 * first.
 */
const COVER = `mkdir -p ${REAL} ${STAND_INS} && mount --bind /usr/sbin ${REAL} &&
mount -t overlay -o lowerdir=${STAND_INS}:/usr/sbin standin /usr/sbin && exec "$0" "$@"`;

/** Command line put before a plugin that is to find the stand-ins. */
export const withStandIns = ["unshare", "--mount", "/bin/sh", "-c", COVER];

/** Path of the machine's own tool, as a stand-in finds it; undefined when there is none. */
export async function realTool(node: Node, tool: string): Promise<string | undefined> {
  const script = 'PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v "$1"';
  const { stdout } = await node.exec(["/bin/sh", "-c", script, "sh", tool]);
  return stdout.trim().replace(/^\/usr\/sbin(?=\/)/, REAL) || undefined;
}

/** Writes a shell script that stands in for a tool. */
export async function standIn(node: Node, tool: string, script: string): Promise<void> {
  await node.write(`${STAND_INS}/${tool}`, `#!/bin/sh\n${script}\n`, 0o755);
}
