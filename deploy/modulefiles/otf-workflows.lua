-- Module file (Lmod) for one installation that many people use; adapt the two paths.
-- Copy it to <folder of module files>/otf-workflows/<version>.lua
local prefix = "/opt/otf-workflows"

help([[On-the-fly machine-learning molecular dynamics.
  otf init my-material --site slurm
  otf doctor]])
whatis("Name: OTF Workflows")
whatis("Description: on-the-fly machine-learning molecular dynamics with CHGNet and DFT")
whatis("Category: materials science")

-- Only the commands: its Python must not come before that of other modules.
prepend_path("PATH", pathJoin(prefix, "commands"))
-- Partitions, programs and the database of this cluster; users may name a file of their own.
if mode() == "load" and not os.getenv("OTF_SITE_FILE") then
  setenv("OTF_SITE_FILE", "/etc/otf-workflows/site.yaml")
end
-- One thread per process: ranks of DFT codes and workers fill the cores already.
setenv("OMP_NUM_THREADS", "1")
