package live

import (
	"fmt"

	"golang.org/x/net/bpf"
)

// maxFilterPorts bounds the ports in a filter, whose jumps have 8 bits. With more
// of them the kernel passes all TCP.
const maxFilterPorts = 40

// Protocol numbers and EtherTypes of the filter.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
	etherMPLS = 0x8847
)

// tunnelPorts are UDP ports of VXLAN (two) and Geneve.
var tunnelPorts = []uint16{4789, 8472, 6081}

// Filter is a program for packets that begin with their network layer, as a
// socket of type SOCK_DGRAM gets them. It passes TCP from and to ports, and
// whatever may contain that: fragments, VLAN tags, tunnels, extension headers.
// The decoder looks closer.
func Filter(ports []uint16) ([]bpf.RawInstruction, error) {
	if len(ports) > maxFilterPorts {
		ports = nil
	}
	var p program
	p.add(bpf.LoadExtension{Num: bpf.ExtProto})
	p.jump(etherIPv4, "ipv4")
	p.jump(etherIPv6, "ipv6")
	p.jump(etherVLAN, "pass")
	p.jump(etherQinQ, "pass")
	p.jump(etherMPLS, "pass")
	p.to("drop")

	p.label("ipv4")
	p.add(bpf.LoadAbsolute{Off: 9, Size: 1})
	p.jump(47, "pass") // GRE
	p.jump(4, "pass")  // IP in IP
	p.jump(41, "pass")
	p.jump(6, "tcp4")
	p.jump(17, "udp4")
	p.to("drop")
	p.label("tcp4")
	p.add(bpf.LoadAbsolute{Off: 6, Size: 2})
	p.bits(0x3fff, "pass") // a fragment
	p.add(bpf.LoadMemShift{Off: 0})
	p.ports(ports, bpf.LoadIndirect{Off: 0, Size: 2}, bpf.LoadIndirect{Off: 2, Size: 2})
	p.label("udp4")
	p.add(bpf.LoadAbsolute{Off: 6, Size: 2})
	p.bits(0x3fff, "pass")
	p.add(bpf.LoadMemShift{Off: 0})
	p.ports(tunnelPorts, bpf.LoadIndirect{Off: 2, Size: 2})

	p.label("ipv6")
	p.add(bpf.LoadAbsolute{Off: 6, Size: 1})
	for _, next := range []uint32{0, 43, 44, 51, 60, 47, 4, 41} {
		p.jump(next, "pass")
	}
	p.jump(6, "tcp6")
	p.jump(17, "udp6")
	p.to("drop")
	p.label("tcp6")
	p.ports(ports, bpf.LoadAbsolute{Off: 40, Size: 2}, bpf.LoadAbsolute{Off: 42, Size: 2})
	p.label("udp6")
	p.ports(tunnelPorts, bpf.LoadAbsolute{Off: 42, Size: 2})

	p.label("pass")
	p.add(bpf.RetConstant{Val: snapLength})
	p.label("drop")
	p.add(bpf.RetConstant{Val: 0})
	return p.assemble()
}

// program is a filter with named jump targets.
type program struct {
	code   []bpf.Instruction
	jumps  map[int]string // of code that jumps
	labels map[string]int
}

func (p *program) add(i bpf.Instruction) { p.code = append(p.code, i) }

func (p *program) label(name string) {
	if p.labels == nil {
		p.labels = map[string]int{}
	}
	p.labels[name] = len(p.code)
}

func (p *program) later(i bpf.Instruction, name string) {
	if p.jumps == nil {
		p.jumps = map[int]string{}
	}
	p.jumps[len(p.code)] = name
	p.add(i)
}

// jump goes to name if the accumulator is v.
func (p *program) jump(v uint32, name string) {
	p.add(bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: v, SkipTrue: 1})
	p.to(name)
}

// bits goes to name if one of the bits is set.
func (p *program) bits(v uint32, name string) {
	p.add(bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: v, SkipTrue: 1})
	p.to(name)
}

func (p *program) to(name string) { p.later(bpf.Jump{}, name) }

// ports passes a packet one of whose fields is one of list, or any if the list
// is empty, and drops others.
func (p *program) ports(list []uint16, fields ...bpf.Instruction) {
	if len(list) == 0 {
		p.to("pass")
		return
	}
	for _, f := range fields {
		p.add(f)
		for _, port := range list {
			p.jump(uint32(port), "pass")
		}
	}
	p.to("drop")
}

func (p *program) assemble() ([]bpf.RawInstruction, error) {
	for i, name := range p.jumps {
		at, ok := p.labels[name]
		if !ok || at <= i {
			return nil, fmt.Errorf("filter: no target %q behind instruction %d", name, i)
		}
		p.code[i] = bpf.Jump{Skip: uint32(at - i - 1)}
	}
	return bpf.Assemble(p.code)
}
