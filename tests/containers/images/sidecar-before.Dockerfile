# The image of the sidecar with the release before in it: its wheel replaces this release's packages and commands.
ARG IMAGE
FROM ${IMAGE}
USER 0:0
COPY sharedvol-0.1.0-py3-none-any.whl /tmp/
COPY tqdm /tmp/tqdm
RUN ["/opt/sharedvol/bin/python", "-P", "-c", "\
import pathlib, shutil, sysconfig, zipfile;\
packages = pathlib.Path(sysconfig.get_path('purelib'));\
[shutil.rmtree(one) for one in packages.glob('sharedvol*')];\
zipfile.ZipFile('/tmp/sharedvol-0.1.0-py3-none-any.whl').extractall(packages);\
shutil.copytree('/tmp/tqdm', packages / 'tqdm');\
command = pathlib.Path(sysconfig.get_path('scripts'), 'sharedvol-sidecar');\
lines = '#!/opt/sharedvol/bin/python', 'import sys', 'from sharedvol_sidecar.cli import main', 'sys.exit(main())', '';\
command.write_text(chr(10).join(lines))"]
USER 65532:65532
