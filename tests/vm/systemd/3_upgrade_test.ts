/** The machine goes from the reference to cnibox and back while its containers live. */
import { passToCniboxAndBack } from "../../e2e/support/replacement.ts";
import { exec, machineTest, makeOutside, sh } from "./machine.ts";

machineTest("chains of the reference pass to cnibox and back: CHECK of all, half deleted by each", async () => {
  await exec(["./install.sh", "--uninstall"]);
  await sh("rm -rf /opt/cni/bin; nft flush ruleset");
  await makeOutside();
  // How it goes with more of them is tried on a node.
  await passToCniboxAndBack({ exec }, 2, "192.0.2.2");
});
