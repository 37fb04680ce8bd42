package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const datastoreName = "LocalDS_0"

// builder puts an inventory into the simulator through the simulator's own API, as a client would.
type builder struct {
	ctx      *simulator.Context
	client   *vim25.Client
	finder   *find.Finder
	root     string // the datastore's local directory
	vmFolder *object.Folder
	pool     *object.ResourcePool
	hosts    []*object.HostSystem
	taken    map[string]bool // directories in the datastore
	notes    notes
}

// notes are what the inventory says of VMs and the simulator has no place for.
type notes struct {
	hideSizes map[deviceID]bool                     // disks whose size leases hide
	deaf      map[types.ManagedObjectReference]bool // VMs whose guest ignores a shutdown
}

// newModel makes a vCenter of one datacenter (DC0) and one cluster of two hosts, without any VM.
func newModel() (*simulator.Model, error) {
	model := simulator.VPX()
	model.Host, model.Cluster, model.ClusterHost, model.Machine = 0, 1, 2, 0
	// The simulator says 6.5, with which pyVmomi refuses a lease's newer members before it even asks.
	about := &model.ServiceContent.About
	about.Version, about.ApiVersion = "8.0.3", "8.0.3.0"
	about.FullName = "VMware vCenter Server 8.0.3 (govmomi simulator)"
	if err := model.Create(); err != nil {
		return nil, err
	}
	return model, nil
}

func newBuilder(model *simulator.Model) (*builder, error) {
	ctx := background(model.Service)
	client, err := vim25.NewClient(ctx, model.Service)
	if err != nil {
		return nil, err
	}
	b := &builder{ctx: ctx, client: client, finder: find.NewFinder(client), taken: map[string]bool{}}
	b.notes = notes{hideSizes: map[deviceID]bool{}, deaf: map[types.ManagedObjectReference]bool{}}
	dc, err := b.finder.Datacenter(ctx, "/DC0")
	if err != nil {
		return nil, err
	}
	b.finder.SetDatacenter(dc)
	folders, err := dc.Folders(ctx)
	if err != nil {
		return nil, err
	}
	b.vmFolder = folders.VmFolder
	if b.hosts, err = b.finder.HostSystemList(ctx, "*"); err != nil {
		return nil, err
	}
	if b.pool, err = b.finder.ResourcePool(ctx, "DC0_C0/Resources"); err != nil {
		return nil, err
	}
	for _, ds := range ctx.Map.All("Datastore") {
		b.root = ds.(*simulator.Datastore).Summary.Url
	}
	return b, nil
}

// populate puts the inventory into the model and returns what the simulator has no place for.
func populate(model *simulator.Model, inv *inventory) (*notes, error) {
	b, err := newBuilder(model)
	if err != nil {
		return nil, err
	}
	return &b.notes, b.build(inv)
}

// background is a context of its own for work outside a client's call: the simulator's locks belong to a context.
func background(service *simulator.Service) *simulator.Context {
	clone := *service.Context
	return &clone
}

func (b *builder) build(inv *inventory) error {
	for _, network := range inv.Networks {
		if err := b.network(network); err != nil {
			return fmt.Errorf("network %q: %w", network.Name, err)
		}
	}
	for i := range inv.VMs {
		if err := b.vm(&inv.VMs[i], i); err != nil {
			return fmt.Errorf("VM %q in %s: %w", inv.VMs[i].Name, inv.VMs[i].Folder, err)
		}
	}
	return nil
}

func (b *builder) network(spec networkSpec) error {
	if b.ctx.Map.FindByName(spec.Name, b.networks()) != nil {
		return nil
	}
	switch orDefault(spec.Kind, "standard") {
	case "standard":
		system, err := b.hosts[0].ConfigManager().NetworkSystem(b.ctx)
		if err != nil {
			return err
		}
		return system.AddPortGroup(b.ctx, types.HostPortGroupSpec{Name: spec.Name, VswitchName: "vSwitch0"})
	case "distributed":
		ref, err := b.finder.Network(b.ctx, "DVS0")
		if err != nil {
			return err
		}
		dvs := object.NewDistributedVirtualSwitch(b.client, ref.Reference())
		task, err := dvs.AddPortgroup(b.ctx, []types.DVPortgroupConfigSpec{{Name: spec.Name, Type: "earlyBinding", NumPorts: 8}})
		if err != nil {
			return err
		}
		return task.Wait(b.ctx)
	default:
		return fmt.Errorf("kind %q is not one of standard, distributed", spec.Kind)
	}
}

func (b *builder) networks() []types.ManagedObjectReference {
	return b.ctx.Map.Any("Datacenter").(*simulator.Datacenter).Network
}

// folder finds or makes the folder of an inventory path.
func (b *builder) folder(path string) (*object.Folder, error) {
	names, err := folderNames(path)
	if err != nil {
		return nil, err
	}
	folder := b.vmFolder
	for _, name := range names {
		children := b.ctx.Map.Get(folder.Reference()).(*simulator.Folder).ChildEntity
		if found := b.ctx.Map.FindByName(escapeName(name), children); found != nil {
			if found.Reference().Type != "Folder" {
				return nil, fmt.Errorf("%q in %s is not a folder", name, path)
			}
			folder = object.NewFolder(b.client, found.Reference())
			continue
		}
		if folder, err = folder.CreateFolder(b.ctx, name); err != nil {
			return nil, err
		}
	}
	return folder, nil
}

// escapeName is how vSphere stores the three characters that its inventory paths could not hold.
func escapeName(name string) string {
	return strings.NewReplacer("%", "%25", "/", "%2f", `\`, "%5c").Replace(name)
}

func (b *builder) vm(spec *vmSpec, index int) error {
	folder, err := b.folder(spec.Folder)
	if err != nil {
		return err
	}
	for _, nic := range spec.NICs {
		if err := b.network(networkSpec{Name: nic.Network}); err != nil {
			return err
		}
	}
	dir, err := b.directory(spec.Name)
	if err != nil {
		return err
	}
	files, err := b.diskFiles(spec, dir)
	if err != nil {
		return err
	}
	config := types.VirtualMachineConfigSpec{
		// The real name comes in finish: the simulator doubles a VM's devices when its name has to be escaped.
		Name: dir, GuestId: spec.GuestID, Firmware: spec.Firmware,
		Uuid: spec.UUID, InstanceUuid: spec.InstanceUUID, Annotation: spec.Annotation,
		NumCPUs: spec.CPUs, MemoryMB: spec.MemoryMB,
		BootOptions: &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(spec.SecureBoot)},
		Files:       &types.VirtualMachineFileInfo{VmPathName: fmt.Sprintf("[%s] %s/%s.vmx", datastoreName, dir, dir)},
	}
	if config.DeviceChange, err = b.devices(spec, files); err != nil {
		return err
	}
	task, err := folder.CreateVM(b.ctx, config, b.pool, b.hosts[index%len(b.hosts)])
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(b.ctx, nil)
	if err != nil {
		return err
	}
	return b.finish(spec, info.Result.(types.ManagedObjectReference), dir)
}

// finish sets what no API call sets: facts that a guest's tools report, snapshots, power, and what the simulator
// would not accept in a specification (raw devices, sharing).
func (b *builder) finish(spec *vmSpec, ref types.ManagedObjectReference, dir string) error {
	vm := b.ctx.Map.Get(ref).(*simulator.VirtualMachine)
	nvram := filepath.Join(b.root, dir, dir+".nvram")
	if err := os.WriteFile(nvram, append([]byte("MRVN"), make([]byte, 8680)...), 0o600); err != nil {
		return err
	}
	b.ctx.WithLock(vm, func() {
		setBackings(spec, vm)
		b.ctx.Update(vm, []types.PropertyChange{
			{Name: "name", Val: escapeName(spec.Name)},
			{Name: "config.name", Val: escapeName(spec.Name)},
			{Name: "summary.config.name", Val: escapeName(spec.Name)},
		})
		// An empty enumeration makes pyVmomi refuse the whole of vm.runtime.
		for _, runtime := range []*types.VirtualMachineRuntimeInfo{&vm.Runtime, &vm.Summary.Runtime} {
			runtime.FaultToleranceState = types.VirtualMachineFaultToleranceStateNotConfigured
			runtime.RecordReplayState = types.VirtualMachineRecordReplayStateInactive
		}
		vm.Capability.SnapshotOperationsSupported = true
		vm.Capability.MultipleSnapshotsSupported = true
		if spec.GuestFullName != "" {
			vm.Config.GuestFullName, vm.Summary.Config.GuestFullName = spec.GuestFullName, spec.GuestFullName
		}
	})
	for i, disk := range spec.Disks {
		if disk.HideFileSize {
			b.notes.hideSizes[deviceID{ref, diskKey(i)}] = true
		}
	}
	if spec.Guest != nil && spec.Guest.IgnoresShutdown {
		b.notes.deaf[ref] = true
	}
	if err := b.snapshotAndStart(spec, object.NewVirtualMachine(b.client, ref)); err != nil {
		return err
	}
	b.ctx.WithLock(vm, func() {
		setGuest(spec, vm)
		b.loseFiles(spec, vm)
	})
	return nil
}

func (b *builder) snapshotAndStart(spec *vmSpec, vm *object.VirtualMachine) error {
	for _, name := range spec.Snapshots {
		task, err := vm.CreateSnapshot(b.ctx, name, "made with the lab's inventory", false, false)
		if err != nil {
			return err
		}
		if err := task.Wait(b.ctx); err != nil {
			return err
		}
	}
	if spec.PowerState == "poweredOn" {
		task, err := vm.PowerOn(b.ctx)
		if err != nil {
			return err
		}
		return task.Wait(b.ctx)
	}
	return nil
}

// loseFiles removes the files of disks that the inventory calls missing.
func (b *builder) loseFiles(spec *vmSpec, vm *simulator.VirtualMachine) {
	for _, device := range vm.Config.Hardware.Device {
		disk, ok := device.(*types.VirtualDisk)
		if !ok || !spec.Disks[disk.Key-firstDisk].Missing {
			continue
		}
		name := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo).GetVirtualDeviceFileBackingInfo().FileName
		if file, err := localPath(b.ctx, name); err == nil {
			_ = os.Remove(file)
		}
		for i := range vm.LayoutEx.File {
			if vm.LayoutEx.File[i].Name == name {
				vm.LayoutEx.File[i].Size = 0
				vm.LayoutEx.File[i].Accessible = types.NewBool(false)
			}
		}
	}
}

// directory makes the VM's directory in the datastore. Its name comes from the VM's, less what a path could be
// bent with, and with a number where a name is taken: two VMs of one name are two directories.
func (b *builder) directory(name string) (string, error) {
	safe := strings.Map(func(r rune) rune {
		if strings.ContainsRune(`/\[]%`, r) || r < ' ' {
			return '_'
		}
		return r
	}, name)
	safe = strings.TrimSpace(safe) // a datastore path loses them too
	if safe == "" || strings.HasPrefix(safe, ".") {
		safe = "_" + strings.TrimPrefix(safe, ".")
	}
	dir := safe
	for n := 1; b.taken[dir]; n++ {
		dir = fmt.Sprintf("%s_%d", safe, n)
	}
	b.taken[dir] = true
	return dir, os.Mkdir(filepath.Join(b.root, dir), 0o700)
}

// diskFiles puts every disk's file into the datastore and returns their datastore paths. Files are copied (by
// reflink where the file system can): a client of the simulator can write and delete in the datastore, and the
// guest cache that the files come from must never change.
func (b *builder) diskFiles(spec *vmSpec, dir string) ([]string, error) {
	var files []string
	for i, disk := range spec.Disks {
		name := dir + ".vmdk"
		if i > 0 {
			name = fmt.Sprintf("%s_%d.vmdk", dir, i)
		}
		target := filepath.Join(b.root, dir, name)
		var err error
		if disk.File == "" {
			err = writeBlankDisk(target, disk.CapacityBytes, fmt.Sprintf("%s disk %d\n", spec.Name, i))
		} else {
			err = copyFile(disk.File, target)
		}
		if err != nil {
			return nil, err
		}
		files = append(files, fmt.Sprintf("[%s] %s/%s", datastoreName, dir, name))
	}
	return files, nil
}

func copyFile(source, target string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil { // copy_file_range: no byte passes through this process
		_ = out.Close()
		return err
	}
	return out.Close()
}

// localPath is the file behind a datastore path, or an error when it would lie outside the datastore.
func localPath(ctx *simulator.Context, datastorePath string) (string, error) {
	var path object.DatastorePath
	if !path.FromString(datastorePath) {
		return "", fmt.Errorf("%q is not a datastore path", datastorePath)
	}
	for _, entity := range ctx.Map.All("Datastore") {
		if ds := entity.(*simulator.Datastore); ds.Name == path.Datastore {
			if !filepath.IsLocal(path.Path) {
				return "", fmt.Errorf("%q leaves its datastore", datastorePath)
			}
			return filepath.Join(ds.Summary.Url, path.Path), nil
		}
	}
	return "", fmt.Errorf("there is no datastore %q", path.Datastore)
}

// entityName is the name a person knows: unescaped.
func entityName(entity mo.Entity) string {
	name, err := url.PathUnescape(entity.Entity().Name)
	if err != nil {
		return entity.Entity().Name
	}
	return name
}
