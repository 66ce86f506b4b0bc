/** The machine goes from the reference to cnibox and back while its containers live. */
import { passToCniboxAndBack } from "../../e2e/support/replacement.ts";
import { exec, machineTest, makeOutside, sh } from "./machine.ts";

machineTest("chains of the reference pass to cnibox and back: CHECK of all, half deleted by each", async () => {
  await exec(["./install.sh", "--uninstall"]);
  await sh("rm -rf /opt/cni/bin; nft flush ruleset");
  await makeOutside();
  // A chain's whole way takes half a minute of an emulated processor.
  await passToCniboxAndBack({ exec }, 4, "192.0.2.2");
});
