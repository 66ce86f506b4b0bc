/**
 * `cnibox deb`: a Debian package of this very executable, with manual pages and completion; needs dpkg-deb and no
 * network.
 */
import { gzipSync } from "node:zlib";
import { exists } from "../kernel/regular_file.ts";
import { must, systemRun, toolPath } from "../kernel/run.ts";
import { CliError, type CommandCall, status, tell } from "./command.ts";
import { completionScript } from "./completion.ts";
import { manualPages } from "./man.ts";
import { writeWhole } from "./setup.ts";

/** `cnibox deb FILE` */
export async function deb(call: CommandCall): Promise<number> {
  if (!Deno.build.standalone) {
    throw new CliError("only a compiled cnibox can make a package of itself", status.failed, ["deno task compile"]);
  }
  if (toolPath("dpkg-deb") === "") {
    throw new CliError("dpkg-deb is not on this machine", status.failed, ["it comes with every Debian and Ubuntu"]);
  }
  const file = fileOf(call);
  const folder = Deno.makeTempDirSync({ prefix: "cnibox-deb-" });
  try {
    await fill(folder, call);
    // The executable is compressed already where it can be: more effort saves little and takes half a minute.
    const pack = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", folder];
    // No time of day in it: the same executable gives the same bytes.
    const argv = ["env", "SOURCE_DATE_EPOCH=0", ...pack];
    await writeWhole(file, (draft) => must(systemRun(), { argv: [...argv, draft] }));
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
  const bytes = Deno.statSync(file).size;
  tell(call, { file, bytes }, () => `${file}: ${(bytes / 1e6).toFixed(1)} MB\n`);
  return status.done;
}

/** The file that is asked for; in a folder, the name that Debian gives to packages. */
function fileOf(call: CommandCall): string {
  const given = (call.arg("FILE") ?? "").replace(/(.)\/+$/, "$1");
  const isFolder = exists(given) && Deno.statSync(given).isDirectory;
  return isFolder ? `${given}/cnibox_${packageVersion(call.invocation.version)}_${ARCHITECTURE}.deb` : given;
}

const packageVersion = (version: string) => version.replace(/^v/, "");
const ARCHITECTURE = Deno.build.arch === "aarch64" ? "arm64" : "amd64";

/** Everything that the package holds, and what is run when it comes and goes. */
async function fill(folder: string, call: CommandCall): Promise<void> {
  const write = (path: string, content: string | Uint8Array, mode = 0o644) => {
    const whole = `${folder}/${path}`;
    Deno.mkdirSync(whole.slice(0, whole.lastIndexOf("/")), { recursive: true, mode: 0o755 });
    Deno.writeFileSync(whole, typeof content === "string" ? new TextEncoder().encode(content) : content);
    Deno.chmodSync(whole, mode);
  };
  Deno.chmodSync(folder, 0o755);
  write(PROGRAM, Deno.readFileSync(Deno.execPath()), 0o755);
  Deno.mkdirSync(`${folder}/usr/bin`, { mode: 0o755 });
  Deno.symlinkSync("../lib/cnibox/cnibox", `${folder}/usr/bin/cnibox`);
  for (const [name, text] of await manualPages(call.invocation)) {
    write(`usr/share/man/man8/${name}.8.gz`, gzipSync(new TextEncoder().encode(text), { level: 9 }));
  }
  write("usr/share/bash-completion/completions/cnibox", completionScript("bash"));
  write("usr/share/zsh/vendor-completions/_cnibox", completionScript("zsh"));
  write("usr/share/fish/vendor_completions.d/cnibox.fish", completionScript("fish"));
  write("usr/share/doc/cnibox/copyright", COPYRIGHT);
  write("DEBIAN/control", control(call.invocation.version));
  for (const [name, script] of Object.entries(SCRIPTS)) write(`DEBIAN/${name}`, `#!/bin/sh\nset -e\n${script}`, 0o755);
}

const PROGRAM = "usr/lib/cnibox/cnibox";

/** In scripts of the package. */
const CALL = `"$DPKG_ROOT/${PROGRAM}"`;
const PLACES = '--bin-dir "$DPKG_ROOT/opt/cni/bin" --path-dir ""';

const COPYRIGHT = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: cnibox

Files: *
License: Apache-2.0

Files: ${PROGRAM}
Copyright: 2018-2026 the Deno authors, 2011-2015 Vitaly Puzrin, 2011-2017 whitequark,
 the V8 project authors, Unicode, Inc., Nicholas C. Zakas
License: Apache-2.0 and Expat and BSD-3-clause and Unicode
Comment: what the program holds of others, with versions, is listed in docs/licenses.md of its source.

License: Apache-2.0
 On Debian systems, the text of the license is in /usr/share/common-licenses/Apache-2.0.

License: Expat
 Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
 documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
 rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
 permit persons to whom the Software is furnished to do so, subject to the following conditions:
 .
 The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
 Software.
 .
 THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
`;

function control(version: string): string {
  return `Package: cnibox
Version: ${packageVersion(version)}
Architecture: ${ARCHITECTURE}
Maintainer: cnibox <cnibox@localhost>
Section: net
Priority: optional
Depends: libc6 (>= 2.27), iproute2, util-linux
Recommends: iptables | nftables
Suggests: conntrack, udhcpc
Description: all the standard CNI plugins in one program
 Called through symlinks in /opt/cni/bin, it is the CNI plugin of that name. Called by its own name, it runs, explains,
 checks, shows and repairs networks.
`;
}

/**
 * The plugins go where runtimes look for them, beside what is there; that plugins of others stay is said, and no
 * failure. An upgrade changes only the executable. Purging removes what is this program's alone: leases and results
 * belong to containers and their runtime. DPKG_ROOT is empty, or where dpkg --root works.
 */
const SCRIPTS: Readonly<Record<string, string>> = {
  postinst: `if [ "$1" = configure ]; then
  ${CALL} install ${PLACES} || [ $? -eq ${status.inTheWay} ]
fi\n`,
  prerm: `if [ "$1" = remove ]; then ${CALL} uninstall ${PLACES}; fi\n`,
  postrm: `if [ "$1" = purge ]; then rm -rf "$DPKG_ROOT/var/lib/cnibox"; fi\n`,
};
